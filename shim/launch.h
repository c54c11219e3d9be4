/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a piece of work names, held while it is given to a stream. */
#ifndef GREENBOOST_LAUNCH_H
#define GREENBOOST_LAUNCH_H

#include <stdbool.h>

#include "record.h"
#include "residency.h"
#include "trace.h"

/* Is the stream recording a graph? Asks the driver only while any stream may be. */
bool launch_captured(CUstream stream, unsigned int variant);

struct launch {
	struct device *device; /* NULL: nothing held */
	struct hold hold;
	CUstream stream;
	unsigned int variant;
	struct record *record; /* NULL: it is not recorded */
	struct trace_launch *trace; /* NULL: nothing is traced */
	CUfunction function; /* set by the caller; NULL: a copy or memset */
	bool few; /* set by the caller, of a kernel: see struct hold */
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

/*
 * An address that kernels may follow without its being in their parameters: it was
 * copied to the device. What it names is kept in VRAM as long as anything else can leave.
 */
void launch_keep_pointee(CUdeviceptr address);

/*
 * What a node of a graph names is brought in and stays for good, as nobody sees when
 * it runs. copy_rows.c has those for nodes that copy and set.
 */
CUresult launch_fix_kernel(const CUDA_KERNEL_NODE_PARAMS *params);
CUresult memop_fix(const CUDA_BATCH_MEM_OP_NODE_PARAMS *params);
CUresult rows_fix_copy(const CUDA_MEMCPY3D *copy);
CUresult rows_fix_fill(const CUDA_MEMSET_NODE_PARAMS *params);

#endif
