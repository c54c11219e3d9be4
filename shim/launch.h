/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a piece of work names, held while it is given to a stream. */
#ifndef GREENBOOST_LAUNCH_H
#define GREENBOOST_LAUNCH_H

#include <stdbool.h>

#include "residency.h"

/* Is the stream recording a graph? Asks the driver only while any stream may be. */
bool launch_captured(CUstream stream, unsigned int variant);

struct launch {
	struct device *device; /* NULL: nothing held */
	struct hold hold;
	CUstream stream;
	unsigned int variant;
	bool captured; /* set by the caller: the work goes into a graph, what it names is fixed for
			  good */
};

/*
 * Hold the spans for work that is about to be given to the stream, and let the
 * stream wait for them; after the work launch_end(). On error nothing is held.
 */
CUresult launch_begin(struct launch *launch, struct device *device, struct span *spans,
		      uint32_t count, CUstream stream, unsigned int variant);
void launch_end(struct launch *launch);

#endif
