// SPDX-License-Identifier: GPL-2.0-or-later
#include "held.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OWN_LEAST 512

bool held_add_arena(struct held *held, uint64_t id, int fd)
{
	struct held_arena *grown =
		realloc(held->arenas, (held->arena_count + 1) * sizeof(*held->arenas));
	int own;

	if (!grown)
		return false;
	held->arenas = grown;
	/* Low numbers are for the program, which may select() on them, and 1024 is often the limit.
	 */
	own = fcntl(fd, F_DUPFD_CLOEXEC, OWN_LEAST);
	if (own < 0)
		own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (own < 0)
		return false;
	held->arenas[held->arena_count++] = (struct held_arena){ id, own };
	return true;
}

void held_remove_arena(struct held *held, uint64_t id)
{
	for (uint32_t i = 0; i < held->arena_count; i++) {
		if (held->arenas[i].id != id)
			continue;
		close(held->arenas[i].fd);
		held->arenas[i] = held->arenas[--held->arena_count];
		return;
	}
}

bool held_add_allocation(struct held *held, struct held_allocation allocation)
{
	uint32_t count = held->allocation_count;
	struct held_allocation *grown = held->allocations;

	/* A power of two is full: programs make tens of thousands. */
	if (!(count & (count - 1)))
		grown = realloc(grown, (count ? 2 * (size_t)count : 1) * sizeof(*grown));
	if (!grown)
		return false;
	held->allocations = grown;
	held->allocations[held->allocation_count++] = allocation;
	return true;
}

/* NULL: it is not there. */
static struct held_allocation *find(struct held *held, uint64_t first)
{
	/* From the end: there are many, and the latest often go first. */
	for (uint32_t i = held->allocation_count; i-- > 0;)
		if (held->allocations[i].first == first)
			return &held->allocations[i];
	return NULL;
}

void held_remove_allocation(struct held *held, uint64_t first)
{
	struct held_allocation *allocation = find(held, first);

	if (allocation)
		*allocation = held->allocations[--held->allocation_count];
}

void held_trim_allocation(struct held *held, struct held_allocation trimmed)
{
	struct held_allocation *allocation = find(held, trimmed.first);

	if (allocation)
		*allocation = trimmed;
}

bool held_copy(const struct held *held, struct held *copy)
{
	const size_t arenas = held->arena_count * sizeof(*held->arenas);
	const size_t allocations = held->allocation_count * sizeof(*held->allocations);

	*copy = (struct held){ .arenas = malloc(arenas + 1),
			       .allocations = malloc(allocations + 1) };
	if (!copy->arenas || !copy->allocations) {
		held_free(copy);
		return false;
	}
	if (allocations)
		memcpy(copy->allocations, held->allocations, allocations);
	copy->allocation_count = held->allocation_count;
	for (uint32_t i = 0; i < held->arena_count; i++)
		copy->arenas[i] = (struct held_arena){ held->arenas[i].id, -1 };
	copy->arena_count = held->arena_count;
	return true;
}

int held_dup(const struct held *held, uint64_t id)
{
	for (uint32_t i = 0; i < held->arena_count; i++)
		if (held->arenas[i].id == id)
			return fcntl(held->arenas[i].fd, F_DUPFD_CLOEXEC, 0);
	errno = ENOENT;
	return -1;
}

void held_free(struct held *held)
{
	for (uint32_t i = 0; i < held->arena_count; i++)
		if (held->arenas[i].fd >= 0)
			close(held->arenas[i].fd);
	free(held->arenas);
	free(held->allocations);
	*held = (struct held){ 0 };
}
