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

/* A function or a graph; zeroed: a copy or memset. */
struct launched {
	CUfunction function;
	CUgraphExec graph;
	struct function *shown; /* what a graph is called where it is written down */
	bool few; /* a kernel of few threads: see struct hold */
};

struct launch {
	struct device *device; /* NULL: nothing held */
	struct hold hold;
	CUstream stream;
	unsigned int variant;
	struct record *record; /* NULL: it is not recorded */
	struct trace_launch *trace; /* NULL: nothing is traced */
	struct span_of_time timed; /* how long the device takes, where that is of use */
	struct launched what; /* set by the caller */
	bool captured; /* set by the caller: the work goes into a graph, what it names is fixed for
			  good */
};

/* It holds nothing: launch_end() may be called. */
static inline void launch_none(struct launch *launch)
{
	launch->device = NULL;
	launch->record = NULL;
	launch->trace = NULL;
}

/*
 * Hold the spans for work that is about to be given to the stream, and let the
 * stream wait for them; after the work launch_end(). On error nothing is held.
 */
CUresult launch_begin(struct launch *launch, struct device *device, struct span *spans,
		      uint32_t count, CUstream stream, unsigned int variant);
void launch_end(struct launch *launch);

/*
 * The same for work that names objects by addresses, of which some may be none; of what
 * they may mean as much as fits.
 */
CUresult launch_begin_named(struct launch *launch, struct device *device, const uint64_t *addresses,
			    uint32_t count, CUstream stream, unsigned int variant);

/* Bytes [begin, end) of device memory; begin == end: none. */
struct extent {
	CUdeviceptr begin, end;
};

/* What work of several parts names. */
struct parts {
	const uint64_t *addresses;
	uint32_t address_count;
	const struct extent *ranges;
	uint32_t range_count;
};

/*
 * The same for all that they may mean, else CUDA_ERROR_OUT_OF_MEMORY; not only for as much
 * of it as fits. No message is written then.
 */
CUresult launch_begin_whole(struct launch *launch, struct device *device, const struct parts *parts,
			    CUstream stream, unsigned int variant);

/* Have VRAM, and RAM for the rest, room at once for the least that the addresses can mean? */
bool launch_can_fit(struct device *device, const uint64_t *addresses, uint32_t count);

/*
 * An address that kernels may follow without its being in their parameters: it was
 * copied to the device. What it names is kept in VRAM as long as anything else can leave.
 */
void launch_keep_pointee(CUdeviceptr address);

/*
 * What a node that copies, sets or waits names is brought in and stays for good: the
 * driver looks at it when the node is made, and again when its graph is instantiated.
 */
CUresult memop_fix(const CUDA_BATCH_MEM_OP_NODE_PARAMS *params);
CUresult rows_fix_copy(const CUDA_MEMCPY3D *copy);
CUresult rows_fix_fill(const CUDA_MEMSET_NODE_PARAMS *params);

/* The memory of the device's that it names. */
struct extent memop_value(const CUstreamBatchMemOpParams *op);
void rows_of_copy(const CUDA_MEMCPY3D *copy, struct extent sides[2]);
struct extent rows_of_fill(const CUDA_MEMSET_NODE_PARAMS *params);

#endif
