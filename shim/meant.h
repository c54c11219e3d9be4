/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What spans mean, in chunks, with what is cut away where not all of it has room. */
#ifndef GREENBOOST_MEANT_H
#define GREENBOOST_MEANT_H

#include "residency.h"

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

/* Chunks of a span from the one that was named up to this end. */
static inline uint64_t span_chunks(const struct device *device, const struct span *span,
				   uint64_t end)
{
	return (end - 1) / device->chunk - span->named / device->chunk + 1;
}

/* False: no memory. */
bool meant_begin(const struct device *device, const struct span *spans, uint32_t count,
		 struct meant *meant);
void meant_end(struct meant *meant);

/* Say how much of each piece is not cut away; nothing is extended any more. */
void meant_cut(const struct device *device, struct meant *meant, enum cut cut);

/* What was cut reaches so many bytes at least. */
void meant_extend(const struct device *device, struct meant *meant, uint64_t bytes, bool sure);

/*
 * Make the ranges, where what is cut is cut to so many chunks, or, if they are zero, to what is
 * sure. What lies before the address that was named goes first: kernels read on from an address,
 * hardly ever back.
 */
void meant_range(struct meant *meant, uint32_t window);

/* Remember what is sure, before ranges are chosen. */
void meant_sure(struct meant *meant);

/* Do the ranges fit so many slots? */
bool meant_fits(const struct device *device, const struct meant *meant, uint64_t room);

#endif
