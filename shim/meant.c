// SPDX-License-Identifier: GPL-2.0-or-later
#include "meant.h"

#include <stdlib.h>

/* Does it look like an allocator's pool, of which a launch uses little? */
static bool in_pool(const struct device *device, const struct span *span)
{
	struct alloc_run run;

	return alloc_run_at(span->allocation, span->named, &run) &&
	       (run.end - 1) / device->chunk - run.begin / device->chunk >=
		       residency_capacity(device);
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
	    span_chunks(device, span, span->end) <= residency_capacity(device))
		least = span->end;
	if (!least || (span->open && cut > CUT_UNLIKELY))
		return 1;
	return (uint32_t)span_chunks(device, span, least);
}

static int by_named(const void *left, const void *right)
{
	const struct piece *a = left, *b = right;

	return a->named < b->named ? -1 : a->named > b->named;
}

bool meant_begin(const struct device *device, const struct span *spans, uint32_t count,
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

void meant_end(struct meant *meant)
{
	if (meant->pieces != meant->few_pieces)
		free(meant->pieces);
}

void meant_cut(const struct device *device, struct meant *meant, enum cut cut)
{
	for (uint32_t p = 0; p < meant->piece_count; p++) {
		struct piece *piece = &meant->pieces[p];

		piece->least = piece->sure = uncut(device, piece->span, cut);
		/* The last one that was named ends anywhere. */
		if (piece->least != UINT32_MAX && !piece->span->least)
			piece->sure = 1;
	}
}

void meant_extend(const struct device *device, struct meant *meant, uint64_t bytes, bool sure)
{
	for (uint32_t p = 0; bytes && p < meant->piece_count; p++) {
		struct piece *piece = &meant->pieces[p];
		uint32_t chunks =
			(uint32_t)span_chunks(device, piece->span, piece->span->named + bytes);

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

void meant_range(struct meant *meant, uint32_t window)
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

void meant_sure(struct meant *meant)
{
	struct range *other = meant->sure;

	meant_range(meant, 0);
	meant->sure = meant->ranges;
	meant->sure_count = meant->range_count;
	meant->ranges = other;
}

/* Fixed chunks take room from every other launch. */
bool meant_fits(const struct device *device, const struct meant *meant, uint64_t room)
{
	uint64_t needed = (uint64_t)meant->chunks + device->fixed;

	if (meant->chunks > room)
		return false;
	for (uint32_t r = 0; needed > room && r < meant->range_count; r++)
		for (uint32_t c = meant->ranges[r].first; c < meant->ranges[r].end; c++)
			needed -= device->chunks[c].fixed;
	return needed <= room;
}
