/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a session has of the daemon's, so that the next one can be told: arenas,
 * with their files, and admitted allocations. Never more than the daemon has
 * granted: added once an answer says so, removed before it is asked to take
 * something back. No locks: the client's guards it.
 */
#ifndef GREENBOOST_HELD_H
#define GREENBOOST_HELD_H

#include <stdbool.h>
#include <stdint.h>

struct held_arena {
	uint64_t id;
	int fd;
};

struct held_allocation {
	uint64_t first, chunks, bytes, address;
};

struct held {
	struct held_arena *arenas;
	struct held_allocation *allocations;
	uint32_t arena_count, allocation_count;
};

/* fd stays the caller's. False: no memory or no file, and the next daemon is not told of it. */
bool held_add_arena(struct held *held, uint64_t id, int fd);
void held_remove_arena(struct held *held, uint64_t id);

bool held_add_allocation(struct held *held, struct held_allocation allocation);
void held_remove_allocation(struct held *held, uint64_t first);
/* It has only so many chunks from now on. */
void held_trim_allocation(struct held *held, struct held_allocation trimmed);

/* All of it but the files, which held_dup gives one by one: a program may have few left to open.
 * False: no memory, and there is nothing to free. */
bool held_copy(const struct held *held, struct held *copy);

/* The arena's file, the caller's. -1 and errno: ENOENT if it is not there any more. */
int held_dup(const struct held *held, uint64_t id);

void held_free(struct held *held);

#endif
