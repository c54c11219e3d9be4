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

static struct allocation *add(struct alloc_map *map, const struct allocation *fresh)
{
	struct allocation *allocation = malloc(sizeof(*allocation));
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
	*allocation = *fresh;
	allocation->number = map->added++;
	at = rank(map, fresh->base);
	memmove(map->sorted + at + 1, map->sorted + at, (map->count - at) * sizeof(*map->sorted));
	map->sorted[at] = allocation;
	map->count++;
	if (fresh->chunks)
		find_bounds(map);
	return allocation;
}

struct allocation *alloc_map_add(struct alloc_map *map, uint64_t base, uint64_t bytes,
				 uint32_t first, uint32_t chunks)
{
	return add(map, &(struct allocation){ .base = base,
					      .bytes = bytes,
					      .first = first,
					      .chunks = chunks,
					      .indexes = chunks });
}

struct allocation *alloc_map_add_sparse(struct alloc_map *map, uint64_t base, uint32_t first,
					uint32_t indexes)
{
	return add(map, &(struct allocation){
				.base = base, .first = first, .indexes = indexes, .sparse = true });
}

void alloc_map_extend(struct alloc_map *map, struct allocation *allocation, uint64_t bytes,
		      uint32_t chunks)
{
	allocation->bytes = bytes;
	allocation->chunks = chunks;
	find_bounds(map);
}

void alloc_map_remove(struct alloc_map *map, struct allocation *allocation)
{
	uint32_t at = rank(map, allocation->base) - 1;

	map->count--;
	memmove(map->sorted + at, map->sorted + at + 1, (map->count - at) * sizeof(*map->sorted));
	if (allocation->chunks)
		find_bounds(map);
	free(allocation->starts);
	free(allocation->names);
	free(allocation->runs);
	free(allocation);
}

/* The number of records, sorted by the offset that each begins with, at or below this one. */
static uint32_t offset_rank(const void *records, size_t size, uint32_t count, uint64_t offset)
{
	uint32_t low = 0, high = count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (*(const uint64_t *)((const char *)records + middle * size) <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static uint32_t run_rank(const struct allocation *a, uint64_t offset)
{
	return offset_rank(a->runs, sizeof(*a->runs), a->run_count, offset);
}

static uint32_t start_rank(const struct allocation *a, uint64_t offset)
{
	return offset_rank(a->starts, sizeof(*a->starts), a->start_count, offset);
}

static uint32_t name_rank(const struct allocation *a, uint64_t offset)
{
	return offset_rank(a->names, sizeof(*a->names), a->name_count, offset);
}

bool alloc_include(struct allocation *a, uint64_t begin, uint64_t end)
{
	uint32_t at = run_rank(a, begin);
	bool before, behind;

	/* As many as there may ever be, so that what goes needs no memory to do so. */
	if (a->pieces == a->run_room) {
		uint32_t room = a->run_room ? 2 * a->run_room : 4;
		struct alloc_run *grown = realloc(a->runs, room * sizeof(*grown));

		if (!grown)
			return false;
		a->runs = grown;
		a->run_room = room;
	}
	a->pieces++;
	before = at && a->runs[at - 1].end == begin;
	behind = at < a->run_count && a->runs[at].begin == end;
	if (before && behind) {
		a->runs[at - 1].end = a->runs[at].end;
		memmove(a->runs + at, a->runs + at + 1, (a->run_count - at - 1) * sizeof(*a->runs));
		a->run_count--;
	} else if (before) {
		a->runs[at - 1].end = end;
	} else if (behind) {
		a->runs[at].begin = begin;
	} else {
		memmove(a->runs + at + 1, a->runs + at, (a->run_count - at) * sizeof(*a->runs));
		a->runs[at] = (struct alloc_run){ begin, end };
		a->run_count++;
	}
	return true;
}

static void forget_starts(struct allocation *a, uint64_t begin, uint64_t end);

void alloc_exclude(struct allocation *a, uint64_t begin, uint64_t end)
{
	uint32_t at = run_rank(a, begin) - 1;
	struct alloc_run *run = &a->runs[at], rest = { end, run->end };

	a->pieces--;
	if (run->begin < begin && end < run->end) {
		run->end = begin;
		memmove(run + 2, run + 1, (a->run_count - at - 1) * sizeof(*run));
		run[1] = rest;
		a->run_count++;
	} else if (run->begin < begin) {
		run->end = begin;
	} else if (end < run->end) {
		run->begin = end;
	} else {
		memmove(run, run + 1, (a->run_count - at - 1) * sizeof(*run));
		a->run_count--;
	}
	forget_starts(a, begin, end);
}

bool alloc_run_at(const struct allocation *a, uint64_t offset, struct alloc_run *run)
{
	uint32_t after;

	if (!a->sparse) {
		*run = (struct alloc_run){ 0, a->bytes };
		return offset < a->bytes;
	}
	after = run_rank(a, offset);
	if (!after || offset >= a->runs[after - 1].end)
		return false;
	*run = a->runs[after - 1];
	return true;
}

bool alloc_holds(const struct allocation *a, uint64_t offset, uint64_t bytes)
{
	struct alloc_run run;

	return alloc_run_at(a, offset, &run) && bytes <= run.end - offset;
}

struct allocation *alloc_map_find(const struct alloc_map *map, uint64_t address)
{
	uint32_t after = rank(map, address);
	struct allocation *a;
	struct alloc_run run;

	if (!after)
		return NULL;
	a = map->sorted[after - 1];
	return alloc_run_at(a, address - a->base, &run) ? a : NULL;
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
		if (map->sorted[i]->indexes)
			paged[n++] = map->sorted[i];
	qsort(paged, n, sizeof(*paged), by_first);
	for (uint32_t i = 0; i < n && paged[i]->first - at < chunks; i++)
		at = paged[i]->first + paged[i]->indexes;
	free(paged);
	return chunks <= limit && at <= limit - chunks ? at : UINT32_MAX;
}

static void forget_names(struct allocation *a, uint64_t begin, uint64_t end)
{
	uint32_t from = begin ? name_rank(a, begin - 1) : 0, to = name_rank(a, end - 1);

	if (from == to)
		return;
	memmove(a->names + from, a->names + to, (a->name_count - to) * sizeof(*a->names));
	a->name_count -= to - from;
}

/* What was there is gone: so are the objects in it, and the ends of those that reach into it. */
static void forget_starts(struct allocation *a, uint64_t begin, uint64_t end)
{
	uint32_t from = start_rank(a, begin), to = start_rank(a, end - 1);

	forget_names(a, begin, end);
	/* One just there counts as below it. */
	if (from && a->starts[from - 1].offset == begin)
		from--;
	if (from && a->starts[from - 1].reach > begin)
		a->starts[from - 1].reach = begin;
	if (from == to)
		return;
	memmove(a->starts + from, a->starts + to, (a->start_count - to) * sizeof(*a->starts));
	a->start_count -= to - from;
}

/*
 * What is weighed here: an object that is taken for wider than it is costs
 * bandwidth, one that is taken for narrower is not all there when a kernel runs
 * over it, which faults. A tensor filled whole, of which a view is then filled and
 * used, looks just as two small tensors in memory that a big one had before, as
 * PyTorch's allocator hands it out: so both are one object until the memory is
 * freed or filled whole again. Tensors uploaded one by one into one buffer, as by
 * llama.cpp, overlap in nothing and stay apart, unless the buffer was cleared
 * first; then it is one object, which is cut where it does not fit (*known is
 * false). A tensor filled in pieces of which one is used by itself is the case
 * that remains: it cannot be told from tensors side by side.
 */
void alloc_note_write(struct allocation *a, uint64_t offset, uint64_t bytes)
{
	uint64_t end = offset + bytes, reach = end;
	uint32_t at = start_rank(a, offset);
	uint32_t through = start_rank(a, end - 1);
	struct start *into = at ? &a->starts[at - 1] : NULL;
	bool doubtful = false;

	/* One copy does not fill two objects: starts inside what it wrote were none. */
	for (uint32_t i = at; i < through; i++)
		if (a->starts[i].reach > reach)
			reach = a->starts[i].reach;
	doubtful = reach > end;
	if (through > at) {
		memmove(a->starts + at, a->starts + through,
			(a->start_count - through) * sizeof(*a->starts));
		a->start_count -= through - at;
	}
	if (into && (into->offset == offset || into->reach > offset)) {
		/* Filled whole by this one write it is one object, whatever it was. */
		into->doubtful =
			doubtful || into->offset < offset || (into->doubtful && into->reach > end);
		if (reach > into->reach)
			into->reach = reach;
		return;
	}
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
	a->starts[at] = (struct start){ .offset = offset, .reach = reach, .doubtful = doubtful };
	a->start_count++;
}

void alloc_object(struct allocation *a, uint64_t offset, uint64_t *begin, uint64_t *end,
		  bool *known)
{
	uint32_t after = start_rank(a, offset);
	struct start *in = after ? &a->starts[after - 1] : NULL;
	struct alloc_run run = { offset, offset };

	alloc_run_at(a, offset, &run);
	if (in && in->offset == offset)
		in->named = true;
	*begin = offset;
	for (uint32_t i = after; i-- > 0 && a->starts[i].offset >= run.begin;) {
		if (a->starts[i].named) {
			*begin = a->starts[i].offset;
			break;
		}
	}
	*end = run.end;
	*known = false;
	/* What no host copy filled has no end that copies could tell: a start behind it may be a
	 * view of its own that was filled. */
	if (!in || in->reach <= offset)
		return;
	for (uint32_t i = after; i < a->start_count && a->starts[i].offset < run.end; i++) {
		if (a->starts[i].named) {
			*end = a->starts[i].offset;
			*known = !in->doubtful;
			break;
		}
	}
}

/* Remember that a launch named it, and return the next one that was; 0: there is none. */
static uint64_t note_name(struct allocation *a, uint64_t offset)
{
	uint32_t after = name_rank(a, offset);
	uint64_t next = after < a->name_count ? a->names[after] : 0;

	if (after && a->names[after - 1] == offset)
		return next;
	if (a->name_count == a->name_room) {
		uint32_t room = a->name_room ? 2 * a->name_room : 16;
		uint64_t *grown =
			room > MAX_STARTS ? NULL : realloc(a->names, room * sizeof(*grown));

		if (!grown)
			return next;
		a->names = grown;
		a->name_room = room;
	}
	memmove(a->names + after + 1, a->names + after,
		(a->name_count - after) * sizeof(*a->names));
	a->names[after] = offset;
	a->name_count++;
	return next;
}

uint64_t alloc_filled(const struct allocation *a, uint64_t offset)
{
	uint32_t after = start_rank(a, offset);

	return after && a->starts[after - 1].reach > offset ? a->starts[after - 1].reach
							    : offset + 1;
}

/* Was nothing of these bytes named but the first? */
static bool named_at_begin_only(const struct allocation *a, const struct alloc_run *run)
{
	uint32_t at = name_rank(a, run->begin);

	if (!at || a->names[at - 1] != run->begin ||
	    (at < a->name_count && a->names[at] < run->end))
		return false;
	for (uint32_t i = start_rank(a, run->begin);
	     i < a->start_count && a->starts[i].offset < run->end; i++)
		if (a->starts[i].named)
			return false;
	return true;
}

uint64_t alloc_probable_end(struct allocation *a, uint64_t offset)
{
	uint64_t next = note_name(a, offset), filled;
	struct alloc_run run = { offset, offset + 1 };

	alloc_run_at(a, offset, &run);
	if (next && next < run.end)
		return next;
	/* A program's memory that is one object; an allocator's is soon named elsewhere. */
	if (offset == run.begin && named_at_begin_only(a, &run))
		return run.end;
	filled = alloc_filled(a, offset);
	return filled > offset + 1 ? filled : 0;
}
