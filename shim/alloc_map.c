// SPDX-License-Identifier: GPL-2.0-or-later
#include "alloc_map.h"

#include <stdlib.h>
#include <string.h>

/* An application that copies to ever new places of one allocation is not laying out objects. */
#define MAX_STARTS 65536

/* The number of allocations that begin at or below the address. */
static uint32_t rank(const struct alloc_map *map, uint64_t address)
{
	uint32_t low = 0, high = map->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (map->sorted[middle]->base <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * The bounds are read without the lock. Each is stored once, so that a reader
 * whose address was in them before and is after finds it in them at any time.
 */
static void find_bounds(struct alloc_map *map)
{
	uint64_t low = UINT64_MAX, high = 0;

	map->paged = 0;
	for (uint32_t i = 0; i < map->count; i++) {
		const struct allocation *a = map->sorted[i];

		if (!a->chunks)
			continue;
		map->paged++;
		if (a->base < low)
			low = a->base;
		if (a->base + a->bytes > high)
			high = a->base + a->bytes;
	}
	__atomic_store_n(&map->low, low, __ATOMIC_RELAXED);
	__atomic_store_n(&map->high, high, __ATOMIC_RELAXED);
}

struct allocation *alloc_map_add(struct alloc_map *map, uint64_t base, uint64_t bytes,
				 uint32_t first, uint32_t chunks)
{
	struct allocation *allocation = calloc(1, sizeof(*allocation));
	uint32_t at;

	if (!allocation)
		return NULL;
	if (map->count == map->room) {
		uint32_t room = map->room ? 2 * map->room : 64;
		struct allocation **grown = realloc(map->sorted, room * sizeof(*grown));

		if (!grown) {
			free(allocation);
			return NULL;
		}
		map->sorted = grown;
		map->room = room;
	}
	*allocation = (struct allocation){
		.base = base, .bytes = bytes, .first = first, .chunks = chunks
	};
	at = rank(map, base);
	memmove(map->sorted + at + 1, map->sorted + at, (map->count - at) * sizeof(*map->sorted));
	map->sorted[at] = allocation;
	map->count++;
	if (chunks)
		find_bounds(map);
	return allocation;
}

void alloc_map_remove(struct alloc_map *map, struct allocation *allocation)
{
	uint32_t at = rank(map, allocation->base) - 1;

	map->count--;
	memmove(map->sorted + at, map->sorted + at + 1, (map->count - at) * sizeof(*map->sorted));
	if (allocation->chunks)
		find_bounds(map);
	free(allocation->starts);
	free(allocation);
}

struct allocation *alloc_map_find(const struct alloc_map *map, uint64_t address)
{
	uint32_t after = rank(map, address);
	struct allocation *a;

	if (!after)
		return NULL;
	a = map->sorted[after - 1];
	return address - a->base < a->bytes ? a : NULL;
}

static int by_first(const void *left, const void *right)
{
	const struct allocation *a = *(struct allocation *const *)left;
	const struct allocation *b = *(struct allocation *const *)right;

	return a->first < b->first ? -1 : a->first > b->first;
}

uint32_t alloc_map_room(const struct alloc_map *map, uint32_t chunks, uint32_t limit)
{
	struct allocation **paged = malloc((map->count + 1) * sizeof(*paged));
	uint32_t n = 0, at = 0;

	if (!paged)
		return UINT32_MAX;
	for (uint32_t i = 0; i < map->count; i++)
		if (map->sorted[i]->chunks)
			paged[n++] = map->sorted[i];
	qsort(paged, n, sizeof(*paged), by_first);
	for (uint32_t i = 0; i < n && paged[i]->first - at < chunks; i++)
		at = paged[i]->first + paged[i]->chunks;
	free(paged);
	return chunks <= limit && at <= limit - chunks ? at : UINT32_MAX;
}

/* The number of starts at or below the offset. */
static uint32_t start_rank(const struct allocation *a, uint64_t offset)
{
	uint32_t low = 0, high = a->start_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (a->starts[middle].offset <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

void alloc_note_write(struct allocation *a, uint64_t offset, uint64_t bytes)
{
	uint32_t at = start_rank(a, offset);
	uint32_t through = start_rank(a, offset + bytes - 1);

	/* One copy does not fill two objects: starts inside what it wrote were none. */
	if (through > at) {
		memmove(a->starts + at, a->starts + through,
			(a->start_count - through) * sizeof(*a->starts));
		a->start_count -= through - at;
	}
	if (at && a->starts[at - 1].offset == offset)
		return;
	if (a->start_count == a->start_room) {
		uint32_t room = a->start_room ? 2 * a->start_room : 16;
		struct start *grown;

		if (room > MAX_STARTS)
			return;
		grown = realloc(a->starts, room * sizeof(*grown));
		if (!grown)
			return; /* objects stay wider than they could be, nothing worse */
		a->starts = grown;
		a->start_room = room;
	}
	memmove(a->starts + at + 1, a->starts + at, (a->start_count - at) * sizeof(*a->starts));
	a->starts[at] = (struct start){ .offset = offset };
	a->start_count++;
}

void alloc_object(struct allocation *a, uint64_t offset, uint64_t *begin, uint64_t *end,
		  bool *known)
{
	uint32_t after = start_rank(a, offset);
	uint32_t i;

	if (after && a->starts[after - 1].offset == offset)
		a->starts[after - 1].named = true;
	*begin = offset;
	for (i = after; i-- > 0;) {
		if (a->starts[i].named) {
			*begin = a->starts[i].offset;
			break;
		}
	}
	*end = a->bytes;
	*known = false;
	for (i = after; i < a->start_count; i++) {
		if (a->starts[i].named) {
			*end = a->starts[i].offset;
			*known = true;
			break;
		}
	}
}
