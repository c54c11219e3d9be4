// SPDX-License-Identifier: GPL-2.0-or-later
/* Which chunks a launch or copy means, given what there is room for. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "meant.h"

/* Of VRAM, as what to divide it by: how far a guess of a launch reaches that fits in no case. */
#define EXCESS_SHARE 8

/* Likewise: how far a guess reaches that is let be. */
#define GUESS_SHARE 4

/* Launches after which most of what was learnt of an allocation's objects is forgotten. */
#define REACH_FORGOTTEN 4096

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
	uint64_t slots = device->terms.ram / device->chunk;
	uint32_t now = residency_in_place(device);
	uint32_t most = without_spare(slots < MAX_CHUNKS ? (uint32_t)slots : MAX_CHUNKS);

	return now > most ? now : most;
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

static void range_whole(const struct device *device, struct meant *meant)
{
	meant_cut(device, meant, CUT_NOTHING);
	meant_range(meant, UINT32_MAX);
}

/* With nothing cut. */
static bool whole_fits(const struct device *device, struct meant *meant, uint64_t room)
{
	range_whole(device, meant);
	/* What RAM is mapped for takes no room. */
	return device->maps || meant_fits(device, meant, room);
}

bool residency_fits(const struct device *device, const struct span *spans, uint32_t count,
		    uint32_t ram)
{
	struct meant meant;
	bool fits;

	if (!meant_begin(device, spans, count, &meant))
		return false;
	fits = whole_fits(device, &meant, (uint64_t)residency_capacity(device) + ram);
	meant_end(&meant);
	return fits;
}

uint32_t residency_chunks(const struct device *device, const struct span *spans, uint32_t count)
{
	struct meant meant;

	if (!meant_begin(device, spans, count, &meant))
		return 0;
	range_whole(device, &meant);
	meant_end(&meant);
	return meant.chunks;
}

/* The widest windows up to `high` with which everything fits become the ranges'; 0: none do. */
static uint32_t widest(const struct device *device, struct meant *meant, uint32_t high,
		       uint32_t room)
{
	uint32_t low = 1;

	while (low < high) {
		uint32_t middle = low + (high - low + 1) / 2;

		meant_range(meant, middle);
		if (meant_fits(device, meant, room))
			low = middle;
		else
			high = middle - 1;
	}
	meant_range(meant, low);
	return meant_fits(device, meant, room) ? low : 0;
}

/*
 * How far, in bytes, objects of a launch reach: two of them; and one, that may lie before a hole,
 * or two of an earlier launch.
 */
struct reach {
	uint64_t probably, perhaps;
};

/*
 * For guesses in pools. What a kernel is given is mostly of one size, and the name that cuts a
 * guess short may be of a smaller object that was there before.
 */
static struct reach find_reach(const struct device *device, const struct meant *meant)
{
	/* Of what seems to reach farther no two fit: little was named there yet. */
	uint64_t most = (uint64_t)residency_capacity(device) * device->chunk / 2, last = 0;
	struct reach reach = { 0, 0 };

	for (uint32_t p = 0; p < meant->piece_count; p++) {
		const struct span *span = meant->pieces[p].span;
		uint64_t end = span->open ? span->least : span->end, bytes;

		/* Several addresses may be in one object. */
		if (!end || span->allocation->base + end == last)
			continue;
		last = span->allocation->base + end;
		bytes = end - span->named;
		if (bytes > most)
			continue;
		if (bytes > reach.perhaps) {
			reach.probably = reach.perhaps;
			reach.perhaps = bytes;
		} else if (bytes > reach.probably) {
			reach.probably = bytes;
		}
	}
	for (uint32_t p = 0; p < meant->piece_count; p++) {
		struct allocation *pool = meant->pieces[p].span->allocation;

		if (p && pool == meant->pieces[p - 1].span->allocation)
			continue;
		if (pool->reach < reach.probably)
			pool->reach = reach.probably;
		else
			pool->reach -= (pool->reach - reach.probably) / REACH_FORGOTTEN;
		if (pool->reach > reach.perhaps)
			reach.perhaps = pool->reach;
	}
	return reach;
}

/* Tell what is sure from what is only guessed, after a cut of pools. */
static struct reach meant_guess(const struct device *device, struct meant *meant)
{
	struct reach reach = find_reach(device, meant);

	meant_extend(device, meant, reach.probably, true);
	meant_sure(meant);
	meant->guesses = true;
	return reach;
}

/* The same where all fits, so that the last one that was named may well reach to the end. */
static void whole_guess(const struct device *device, struct meant *meant)
{
	bool pools = false;

	meant_cut(device, meant, CUT_POOLS);
	for (uint32_t p = 0; p < meant->piece_count; p++) {
		struct piece *piece = &meant->pieces[p];

		if (piece->least == UINT32_MAX)
			continue;
		pools = true;
		if (!piece->span->least)
			piece->sure = UINT32_MAX;
	}
	if (!pools)
		return;
	meant_guess(device, meant);
	meant_range(meant, UINT32_MAX);
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
static bool choose_cut(const struct device *device, struct meant *meant, struct hold *hold)
{
	uint32_t capacity = residency_capacity(device), window = 0, ram;
	struct reach reach = { 0, 0 };

	meant_cut(device, meant, hold->cut);
	meant->guesses = false;
	if (hold->where == HOLD_EXCESS && hold->cut == CUT_POOLS) {
		reach = meant_guess(device, meant);
		/* Not in the places of what is kept for the next launches. */
		if (device->grace.chunks < capacity)
			window = widest(device, meant, capacity, capacity - device->grace.chunks);
	}
	if (!window)
		window = widest(device, meant, capacity, capacity);
	if (hold->where != HOLD_EXCESS)
		return window;
	if (window && (window >= capacity / GUESS_SHARE || reach.perhaps == reach.probably))
		return true;
	meant_extend(device, meant, reach.perhaps, false);
	if (window && widest(device, meant, capacity, capacity))
		return true;
	ram = hold->again ? residency_in_place(device) : residency_in_place_most(device);
	hold->ram = hold->exceeds = widest(device, meant, capacity / EXCESS_SHARE, capacity + ram);
	if (hold->exceeds || !reach.perhaps)
		return hold->exceeds;
	/* Not even RAM has room for as much as one may reach. */
	meant_cut(device, meant, hold->cut);
	meant_extend(device, meant, reach.probably, true);
	if (window)
		return widest(device, meant, window, capacity);
	hold->ram = hold->exceeds = widest(device, meant, capacity / EXCESS_SHARE, capacity + ram);
	return hold->exceeds;
}

/* False: no memory. */
static bool hold_fill(const struct meant *meant, struct hold *hold)
{
	uint32_t sure = 0;

	if (meant->chunks > hold->room) {
		uint32_t *grown = malloc(meant->chunks * (sizeof(*grown) + sizeof(*hold->guessed)));

		if (!grown)
			return false;
		if (hold->chunks != hold->in_place)
			free(hold->chunks);
		hold->chunks = grown;
		hold->guessed = (bool *)(grown + meant->chunks);
		hold->room = meant->chunks;
	}
	hold->count = 0;
	hold->guesses = meant->guesses;
	for (uint32_t r = 0; r < meant->range_count; r++) {
		for (uint32_t c = meant->ranges[r].first; c < meant->ranges[r].end; c++) {
			while (meant->guesses && sure < meant->sure_count &&
			       meant->sure[sure].end <= c)
				sure++;
			hold->guessed[hold->count] =
				meant->guesses &&
				(sure == meant->sure_count || c < meant->sure[sure].first);
			hold->chunks[hold->count++] = c;
		}
	}
	return true;
}

CUresult hold_choose(const struct device *device, struct span *spans, uint32_t count,
		     struct hold *hold)
{
	struct meant meant;
	bool chosen = false;

	for (uint32_t s = 0; s < count; s++)
		clip(&spans[s]);
	hold->ram = hold->where == HOLD_APART && apart(device, spans, count);
	hold->exceeds = hold->pressed = false;
	hold->cut = hold->cut_least;
	if (!meant_begin(device, spans, count, &meant))
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (hold->cut == CUT_NOTHING) {
		chosen = whole_fits(device, &meant, residency_capacity(device));
		if (!chosen)
			hold->cut = CUT_POOLS;
		else if (hold->where == HOLD_EXCESS && !device->maps)
			whole_guess(device, &meant);
	}
	while (!chosen && !(chosen = choose_cut(device, &meant, hold)) && hold->cut < CUT_DOUBTFUL)
		hold->cut++;
	chosen = chosen && hold_fill(&meant, hold);
	meant_end(&meant);
	return chosen ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static int by_index(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return a < b ? -1 : a > b;
}

bool hold_has(const struct hold *hold, uint32_t index)
{
	return bsearch(&index, hold->chunks, hold->count, sizeof(index), by_index) != NULL;
}
