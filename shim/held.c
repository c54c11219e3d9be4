// SPDX-License-Identifier: GPL-2.0-or-later
#include "held.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool held_add_arena(struct held *held, uint64_t id, int fd)
{
	struct held_arena *grown =
		realloc(held->arenas, (held->arena_count + 1) * sizeof(*held->arenas));
	int own;

	if (!grown)
		return false;
	held->arenas = grown;
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

void held_remove_allocation(struct held *held, uint64_t first)
{
	/* From the end: there are many, and the latest often go first. */
	for (uint32_t i = held->allocation_count; i-- > 0;) {
		if (held->allocations[i].first != first)
			continue;
		held->allocations[i] = held->allocations[held->allocation_count - 1];
		held->allocation_count--;
		return;
	}
}

bool held_copy(const struct held *held, struct held *copy)
{
	const size_t bytes = held->allocation_count * sizeof(*held->allocations);
	bool whole = true;

	*copy = (struct held){ .allocations = malloc(bytes ? bytes : 1) };
	if (!copy->allocations)
		return false;
	if (bytes)
		memcpy(copy->allocations, held->allocations, bytes);
	copy->allocation_count = held->allocation_count;
	for (uint32_t i = 0; i < held->arena_count && whole; i++)
		whole = held_add_arena(copy, held->arenas[i].id, held->arenas[i].fd);
	if (!whole)
		held_free(copy);
	return whole;
}

void held_free(struct held *held)
{
	for (uint32_t i = 0; i < held->arena_count; i++)
		close(held->arenas[i].fd);
	free(held->arenas);
	free(held->allocations);
	*held = (struct held){ 0 };
}
