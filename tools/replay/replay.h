/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A trace run through the shim's residency, pager and predictor on a machine made of
 * numbers (machine.h): a GPU that computes in order, one copy engine each way, a disk
 * that reads and writes; and what no policy could do better, with the future known.
 */
#ifndef GREENBOOST_REPLAY_H
#define GREENBOOST_REPLAY_H

#include <stdint.h>

/* How a launch uses a chunk. */
#define USE_READS 0
#define USE_CHANGES 1
#define USE_OVERWRITES 2

/* One launch, copy or free, and its uses: chunk[first] to chunk[first + count - 1]. */
struct step {
	uint32_t first, count;
	uint32_t tag;
	uint32_t pass;
	double host; /* seconds of the program's thread from the step before; in which it did not
			wait */
	double compute; /* seconds on the GPU */
	uint8_t frees; /* the chunks' memory is freed */
	uint8_t waits; /* the program waits for the GPU first */
};

/* Uses that are remembered, as by the shim. */
#define REPLAY_USES 524288

struct machine {
	uint32_t slots; /* of VRAM */
	uint32_t ram; /* slots of RAM */
	double chunk; /* bytes */
	double up, down; /* bytes a second, to VRAM and from it */
	double disk_read, disk_write; /* bytes a second */
	double disk_latency; /* seconds */
	double move; /* seconds of the pager's thread to take a chunk away and map another */
	double sum; /* seconds that a checksum takes at least, and bytes a second */
	double sum_speed;
	double pin; /* bytes of RAM a second that the daemon makes and the opener registers */
	uint32_t look_ahead; /* 0: only what is waited for is brought in */
};

struct pass {
	double seconds, compute, stalled;
	double least; /* seconds */
	uint64_t in, out, fetched, spilled; /* chunks */
	uint64_t ahead; /* of those in, before they were asked for */
	uint64_t in_bound, out_bound, fetched_bound;
};

struct trace {
	const struct step *steps;
	uint32_t step_count;
	const uint32_t *chunks;
	const uint8_t *uses;
	uint32_t chunk_count; /* indexes are below */
	uint32_t pass_count;
};

/* Fill in what happened. 0, or the step (plus one) that does not fit. */
uint32_t replay_run(const struct trace *trace, const struct machine *machine, struct pass *passes);

/* Fill in the bounds. 0, or the step (plus one) that does not fit. */
uint32_t replay_bound(const struct trace *trace, const struct machine *machine,
		      struct pass *passes);

/* CPU time that predict_begin to predict_end take a step, and a use, over the whole trace. */
void replay_cost(const struct trace *trace, uint32_t slots, double *step_ns, double *use_ns);

#endif
