/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The application's allocations by address, and the objects inside them. No
 * CUDA calls, no locks: the device's lock guards it.
 */
#ifndef GREENBOOST_ALLOC_MAP_H
#define GREENBOOST_ALLOC_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Bytes that host copies and memsets wrote, from where the first of them began.
 * Once a launch has named that address too, an object starts there; piecewise
 * uploads (copied to, never named) and views (named, never copied to) do not cut
 * objects. A write that begins inside an older one widens it and starts nothing:
 * it may have filled a part of a tensor that was filled whole before.
 */
struct start {
	uint64_t offset, reach; /* [offset, reach); those of two starts never overlap */
	bool named;
	bool doubtful; /* more than one write made it: it may be several objects */
};

struct allocation {
	uint64_t base;
	uint64_t bytes; /* asked for */
	uint32_t first; /* its first chunk; unused while direct */
	uint32_t chunks; /* 0: direct, the driver's own */
	uint32_t number; /* how many were added to the map before it */
	bool leaving; /* being freed */
	uint32_t
		guests; /* launches that name it, perhaps by accident, and hold nothing of it yet */
	struct start *starts; /* sorted */
	uint32_t start_count, start_room;
};

struct alloc_map {
	struct allocation **sorted;
	uint32_t count, room;
	uint32_t paged; /* how many are paged */
	uint32_t added; /* since the beginning */
	uint64_t low, high; /* paged addresses lie in [low, high) */
};

/* Returns NULL without memory. bytes > 0; chunks 0 for a direct one. */
struct allocation *alloc_map_add(struct alloc_map *map, uint64_t base, uint64_t bytes,
				 uint32_t first, uint32_t chunks);
void alloc_map_remove(struct alloc_map *map, struct allocation *allocation);

/* The allocation that holds the address, or NULL. */
struct allocation *alloc_map_find(const struct alloc_map *map, uint64_t address);

/* The first index of so many consecutive chunks that no allocation has, UINT32_MAX if there is
 * none. */
uint32_t alloc_map_room(const struct alloc_map *map, uint32_t chunks, uint32_t limit);

/* A copy or memset wrote [offset, offset + bytes): it begins an object or belongs to older ones. */
void alloc_note_write(struct allocation *allocation, uint64_t offset, uint64_t bytes);

/*
 * A launch named this offset: which bytes does that mean? [*begin, *end) of the
 * allocation, and rather too many than too few. *known: a later object start is
 * known, so that is certain; else it is the widest that can be meant.
 */
void alloc_object(struct allocation *allocation, uint64_t offset, uint64_t *begin, uint64_t *end,
		  bool *known);

#endif
