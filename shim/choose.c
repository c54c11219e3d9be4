// SPDX-License-Identifier: GPL-2.0-or-later
/* Which chunks a launch or copy means, given what there is room for. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "residency.h"

/* Of VRAM, as what to divide it by: how far a guess of a launch reaches that fits in no case. */
#define EXCESS_SHARE 8

/* Of RAM, as what to divide it by: what is left to chunks that come and go, a slot at least. */
#define SPARE_SHARE 4

uint32_t residency_capacity(const struct device *device)
{
	return device->slots_allowed;
}

/* Without room for them in RAM no others could leave VRAM. */
static uint32_t without_spare(uint32_t slots)
{
	uint32_t spare = slots / SPARE_SHARE;

	return slots - (spare ? spare : slots > 0);
}

uint32_t residency_in_place(const struct device *device)
{
	uint32_t slots, available;

	mover_count_ram(&device->mover, &slots, &available);
	return without_spare(slots);
}

uint32_t residency_in_place_most(const struct device *device)
{
	uint64_t most = device->terms.ram / device->chunk;
	uint32_t now = residency_in_place(device);

	most = without_spare(most < MAX_CHUNKS ? (uint32_t)most : MAX_CHUNKS);
	return now > most ? now : (uint32_t)most;
}

/* How much of a span is not cut away; UINT32_MAX: as much as there is. */
static uint32_t uncut(const struct device *device, const struct span *span, enum cut cut)
{
	uint32_t named = (uint32_t)(span->named / device->chunk);
	bool pool =
		span->allocation->sparse || span->allocation->chunks > residency_capacity(device);

	if (!span->open && (cut < CUT_DOUBTFUL || !span->least))
		return UINT32_MAX;
	if (span->open && (cut == CUT_NOTHING || (cut == CUT_POOLS && !pool)))
		return UINT32_MAX;
	if (!span->least || (span->open && cut > CUT_UNLIKELY))
		return 1;
	return (uint32_t)((span->least - 1) / device->chunk) - named + 1;
}

/*
 * The chunks of a span when it is cut to so many: first to first + result - 1. What lies before
 * the address that was named goes first: kernels read on from an address, hardly ever back.
 */
static uint32_t span_chunks(const struct device *device, const struct span *span, uint32_t window,
			    enum cut cut, uint32_t *first)
{
	uint32_t least = uncut(device, span, cut);
	uint32_t from = (uint32_t)(span->begin / device->chunk);
	uint32_t to = (uint32_t)((span->end - 1) / device->chunk);
	uint32_t named = (uint32_t)(span->named / device->chunk);
	uint32_t count = to - from + 1;

	if (span->begin == span->end) {
		*first = 0;
		return 0;
	}
	window = window > least ? window : least;
	if (count > window) {
		from = named;
		count = to - from + 1 < window ? to - from + 1 : window;
	}
	*first = span->allocation->first + from;
	return count;
}

/* What of a sparse allocation was unmapped since it was named is not there to be held: what is left
 * is around the address, from before which an object may reach. */
static void clip(struct span *span)
{
	struct alloc_run run;

	if (!span->allocation->sparse || span->begin == span->end)
		return;
	if (!alloc_run_at(span->allocation, span->named, &run))
		run = (struct alloc_run){ span->begin, span->begin };
	if (span->begin < run.begin)
		span->begin = run.begin;
	if (span->end > run.end)
		span->end = run.end;
}

/* Chunks [first, end) that spans have. */
struct covered {
	uint32_t first, end;
};

/*
 * Of n chunks from *first on those that the spans before do not have: of sorted ones each is
 * counted once, and many that reach to the same end cost no more than one.
 */
static uint32_t uncovered(struct covered *covered, uint32_t *first, uint32_t n)
{
	uint32_t end = *first + n;

	if (*first < covered->first || *first >= covered->end) {
		*covered = (struct covered){ *first, end };
		return n;
	}
	if (end <= covered->end)
		return 0;
	*first = covered->end;
	covered->end = end;
	return end - *first;
}

static int by_index(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return a < b ? -1 : a > b;
}

/* Sort and drop what is there twice; spans overlap when a launch names an object twice. */
static void hold_normalize(struct hold *hold)
{
	uint32_t kept = 0;

	qsort(hold->chunks, hold->count, sizeof(*hold->chunks), by_index);
	for (uint32_t i = 0; i < hold->count; i++)
		if (!i || hold->chunks[i] != hold->chunks[i - 1])
			hold->chunks[kept++] = hold->chunks[i];
	hold->count = kept;
}

/* Fill the hold with the spans' chunks, open spans cut to the window. False: no memory. */
static bool hold_fill(const struct device *device, const struct span *spans, uint32_t count,
		      uint32_t window, enum cut cut, struct hold *hold)
{
	struct covered covered = { 0 };

	hold->count = 0;
	for (uint32_t s = 0; s < count; s++) {
		uint32_t first, n = span_chunks(device, &spans[s], window, cut, &first);

		n = uncovered(&covered, &first, n);
		if (hold->count + n > hold->room) {
			uint32_t room = 2 * (hold->count + n);
			uint32_t *grown = malloc(room * sizeof(*grown));

			if (!grown)
				return false;
			memcpy(grown, hold->chunks, hold->count * sizeof(*grown));
			if (hold->chunks != hold->in_place)
				free(hold->chunks);
			hold->chunks = grown;
			hold->room = room;
		}
		for (uint32_t i = 0; i < n; i++)
			hold->chunks[hold->count++] = first + i;
	}
	hold_normalize(hold);
	return true;
}

/* Fixed chunks take room from every other launch. */
static bool hold_fits(const struct device *device, const struct hold *hold, uint32_t room)
{
	uint32_t others = device->fixed;

	for (uint32_t i = 0; i < hold->count; i++)
		others -= device->chunks[hold->chunks[i]].fixed;
	return hold->count + others <= room;
}

bool residency_fits(const struct device *device, const struct span *spans, uint32_t count,
		    uint32_t ram)
{
	uint64_t chunks = device->fixed;
	struct covered covered = { 0 };

	/* What RAM is mapped for takes no room. */
	if (device->maps)
		return true;
	for (uint32_t s = 0; s < count; s++) {
		uint32_t first, n = span_chunks(device, &spans[s], UINT32_MAX, CUT_NOTHING, &first);

		n = uncovered(&covered, &first, n);
		for (uint32_t i = 0; i < n; i++)
			chunks += !device->chunks[first + i].fixed;
	}
	return chunks <= (uint64_t)residency_capacity(device) + ram;
}

/* The widest windows up to `high` with which everything fits. */
static CUresult widest(const struct device *device, const struct span *spans, uint32_t count,
		       enum cut cut, uint32_t high, uint32_t room, struct hold *hold)
{
	uint32_t low = 1;

	while (low < high) {
		uint32_t middle = low + (high - low + 1) / 2;

		if (!hold_fill(device, spans, count, middle, cut, hold))
			return CUDA_ERROR_OUT_OF_MEMORY;
		if (hold_fits(device, hold, room))
			low = middle;
		else
			high = middle - 1;
	}
	if (!hold_fill(device, spans, count, low, cut, hold))
		return CUDA_ERROR_OUT_OF_MEMORY;
	return hold_fits(device, hold, room) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Each span within one chunk? */
static bool apart(const struct device *device, const struct span *spans, uint32_t count)
{
	for (uint32_t s = 0; s < count; s++)
		if (spans[s].begin < spans[s].end &&
		    spans[s].begin / device->chunk != (spans[s].end - 1) / device->chunk)
			return false;
	return true;
}

/*
 * A kernel uses in RAM what VRAM has no room for, rather than that more is cut: what is there and
 * not read costs little, and what is read and not there is the end of the program.
 */
static CUresult choose_cut(const struct device *device, const struct span *spans, uint32_t count,
			   struct hold *hold)
{
	uint32_t capacity = residency_capacity(device);
	CUresult result = widest(device, spans, count, hold->cut, capacity, capacity, hold);

	if (!result || hold->where != HOLD_EXCESS)
		return result;
	result = widest(device, spans, count, hold->cut, capacity / EXCESS_SHARE,
			capacity + residency_in_place_most(device), hold);
	hold->ram = hold->exceeds = !result;
	return result;
}

CUresult hold_choose(const struct device *device, struct span *spans, uint32_t count,
		     struct hold *hold)
{
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

	for (uint32_t s = 0; s < count; s++)
		clip(&spans[s]);
	hold->ram = hold->where == HOLD_APART && apart(device, spans, count);
	hold->exceeds = hold->pressed = false;
	hold->cut = hold->cut_least;
	if (hold->cut == CUT_NOTHING) {
		if (!hold_fill(device, spans, count, UINT32_MAX, CUT_NOTHING, hold))
			return CUDA_ERROR_OUT_OF_MEMORY;
		/* What RAM is mapped for takes no room. */
		if (device->maps || hold_fits(device, hold, residency_capacity(device)))
			return CUDA_SUCCESS;
		hold->cut = CUT_POOLS;
	}
	while ((result = choose_cut(device, spans, count, hold)) && hold->cut < CUT_DOUBTFUL)
		hold->cut++;
	return result;
}

bool hold_has(const struct hold *hold, uint32_t index)
{
	return bsearch(&index, hold->chunks, hold->count, sizeof(index), by_index) != NULL;
}
