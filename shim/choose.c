// SPDX-License-Identifier: GPL-2.0-or-later
/* Which chunks a launch or copy means, given what there is room for. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "residency.h"

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

/* Does it look like an allocator's pool, of which a launch uses little? */
static bool in_pool(const struct device *device, const struct span *span)
{
	struct alloc_run run;

	return alloc_run_at(span->allocation, span->named, &run) &&
	       (run.end - 1) / device->chunk - run.begin / device->chunk >=
		       residency_capacity(device);
}

/* Chunks of a span from the one that was named up to this end. */
static uint64_t up_to(const struct device *device, const struct span *span, uint64_t end)
{
	return (end - 1) / device->chunk - span->named / device->chunk + 1;
}

/* How much of a span is not cut away; UINT32_MAX: as much as there is. */
static uint32_t uncut(const struct device *device, const struct span *span, enum cut cut)
{
	uint64_t least = span->least;

	if (!span->open && (cut < CUT_DOUBTFUL || !least))
		return UINT32_MAX;
	if (span->open && (cut == CUT_NOTHING || (cut == CUT_POOLS && !in_pool(device, span))))
		return UINT32_MAX;
	/* The last that was named in a pool ends anywhere, but is no more than VRAM holds. */
	if (span->open && cut == CUT_POOLS && !least &&
	    up_to(device, span, span->end) <= residency_capacity(device))
		least = span->end;
	if (!least || (span->open && cut > CUT_UNLIKELY))
		return 1;
	return (uint32_t)up_to(device, span, least);
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

/*
 * The chunks of a span, [from, end); the one that was named, and how many from there on are not cut
 * away; and of those how many are not there only in case they are read.
 */
struct piece {
	const struct span *span;
	uint32_t from, end;
	uint32_t named, least, sure;
};

/* Chunks [first, end). */
struct range {
	uint32_t first, end;
};

#define MEANT_INLINE 128

/* What spans mean: of a pool's they may be thousands of chunks each, and mostly the same. */
struct meant {
	struct piece *pieces;
	struct range *ranges; /* sorted and apart, of no more room than pieces */
	struct range *sure; /* likewise: what of them is not only guessed */
	uint32_t piece_count, range_count, sure_count;
	uint32_t chunks; /* in the ranges */
	bool guesses; /* some of them are */
	struct piece few_pieces[MEANT_INLINE];
	struct range few_ranges[2 * MEANT_INLINE];
};

static int by_named(const void *left, const void *right)
{
	const struct piece *a = left, *b = right;

	return a->named < b->named ? -1 : a->named > b->named;
}

static bool meant_begin(const struct device *device, const struct span *spans, uint32_t count,
			struct meant *meant)
{
	meant->pieces = meant->few_pieces;
	meant->ranges = meant->few_ranges;
	meant->sure = meant->few_ranges + MEANT_INLINE;
	if (count > MEANT_INLINE) {
		meant->pieces =
			malloc(count * (sizeof(*meant->pieces) + 2 * sizeof(*meant->ranges)));
		if (!meant->pieces)
			return false;
		meant->ranges = (struct range *)(meant->pieces + count);
		meant->sure = meant->ranges + count;
	}
	meant->guesses = false;
	meant->piece_count = 0;
	for (uint32_t s = 0; s < count; s++) {
		const struct span *span = &spans[s];
		uint32_t first = span->allocation->first;

		if (span->begin == span->end)
			continue;
		meant->pieces[meant->piece_count++] = (struct piece){
			.span = span,
			.from = first + (uint32_t)(span->begin / device->chunk),
			.end = first + (uint32_t)((span->end - 1) / device->chunk) + 1,
			.named = first + (uint32_t)(span->named / device->chunk),
		};
	}
	qsort(meant->pieces, meant->piece_count, sizeof(*meant->pieces), by_named);
	return true;
}

static void meant_end(struct meant *meant)
{
	if (meant->pieces != meant->few_pieces)
		free(meant->pieces);
}

static void meant_cut(const struct device *device, struct meant *meant, enum cut cut)
{
	for (uint32_t p = 0; p < meant->piece_count; p++) {
		struct piece *piece = &meant->pieces[p];

		piece->least = piece->sure = uncut(device, piece->span, cut);
		/* The last one that was named ends anywhere. */
		if (piece->least != UINT32_MAX && !piece->span->least)
			piece->sure = 1;
	}
}

/* What was cut reaches so many bytes at least. */
static void meant_extend(const struct device *device, struct meant *meant, uint64_t bytes,
			 bool sure)
{
	for (uint32_t p = 0; bytes && p < meant->piece_count; p++) {
		struct piece *piece = &meant->pieces[p];
		uint32_t chunks = (uint32_t)up_to(device, piece->span, piece->span->named + bytes);

		if (chunks > piece->least)
			piece->least = chunks;
		if (sure && chunks > piece->sure)
			piece->sure = chunks;
	}
}

/* In a range, of chunks from the one that was named no more than that. */
static struct range piece_range(const struct piece *piece, uint32_t most)
{
	struct range range = { piece->from, piece->end };

	if (range.end - range.first > most)
		range.first = piece->named;
	if (range.end - range.first > most)
		range.end = range.first + most;
	return range;
}

/*
 * The ranges, where what is cut is cut to so many chunks, or, if they are zero, to what is sure.
 * What lies before the address that was named goes first: kernels read on from an address, hardly
 * ever back.
 */
static void meant_range(struct meant *meant, uint32_t window)
{
	struct range *ranges = meant->ranges, *last = NULL;

	for (uint32_t p = 0; p < meant->piece_count; p++) {
		const struct piece *piece = &meant->pieces[p];
		uint32_t most = window > piece->least ? window : piece->least, at = p;
		struct range range = piece_range(piece, window ? most : piece->sure);

		/* They nearly are in order. */
		for (; at && ranges[at - 1].first > range.first; at--)
			ranges[at] = ranges[at - 1];
		ranges[at] = range;
	}
	meant->range_count = meant->chunks = 0;
	for (uint32_t p = 0; p < meant->piece_count; p++) {
		struct range range = ranges[p];

		if (last && range.first < last->end)
			range.first = last->end;
		if (range.first >= range.end)
			continue;
		meant->chunks += range.end - range.first;
		if (last && range.first == last->end) {
			last->end = range.end;
		} else {
			last = &ranges[meant->range_count++];
			*last = range;
		}
	}
}

/* Remember what is sure, before ranges are chosen. */
static void meant_sure(struct meant *meant)
{
	struct range *other = meant->sure;

	meant_range(meant, 0);
	meant->sure = meant->ranges;
	meant->sure_count = meant->range_count;
	meant->ranges = other;
}

/* Fixed chunks take room from every other launch. */
static bool meant_fits(const struct device *device, const struct meant *meant, uint64_t room)
{
	uint64_t needed = (uint64_t)meant->chunks + device->fixed;

	if (meant->chunks > room)
		return false;
	for (uint32_t r = 0; needed > room && r < meant->range_count; r++)
		for (uint32_t c = meant->ranges[r].first; c < meant->ranges[r].end; c++)
			needed -= device->chunks[c].fixed;
	return needed <= room;
}

/* With nothing cut. */
static bool whole_fits(const struct device *device, struct meant *meant, uint64_t room)
{
	meant_cut(device, meant, CUT_NOTHING);
	meant_range(meant, UINT32_MAX);
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

/* Make them the widest windows up to `high` with which everything fits, and say how wide; 0: none.
 */
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
