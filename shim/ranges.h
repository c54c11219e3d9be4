/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Device memory that a call names by address and length, held while the call is made. */
#ifndef GREENBOOST_RANGES_H
#define GREENBOOST_RANGES_H

#include "launch.h"

/*
 * Hold what the ranges cover of paged allocations; the caller has set
 * held->captured, and calls launch_end() after the work. A range that runs out
 * of its allocation is left to the driver.
 */
CUresult ranges_begin(struct launch *held, const struct extent *ranges, uint32_t count,
		      CUstream stream, unsigned int variant);

/* The same for a copy or memset; CUDA_ERROR_OUT_OF_MEMORY also says: make it less at a time. */
CUresult ranges_begin_copy(struct launch *held, const struct extent *ranges, uint32_t count,
			   CUstream stream, unsigned int variant);

/*
 * For what will be used at times that nobody sees: graphs, textures. The ranges
 * stay in VRAM until they are freed. `what` is for the message when they do not fit.
 */
CUresult ranges_fix(const struct extent *ranges, uint32_t count, const char *what);

#endif
