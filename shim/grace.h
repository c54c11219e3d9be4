/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Chunks that stay although what named them is over. Before a grouped or batched
 * matrix product a small kernel is given the base of a large object and writes a
 * table of pointers into it, and the product, launched behind it, is given the table
 * alone. So what a launch of few threads named counts as used until later launches of
 * its stream are over, and until then is the last to leave.
 *
 * Of few threads, since each writes a pointer: who reads what is large has as many as
 * the GPU runs. What those name leaves right after its use if it has to, as in a model
 * that streams through VRAM. To keep it for one launch more moves 1% more bytes there,
 * 3% with experts, when tools/replay runs the recorded traces.
 */
#ifndef GREENBOOST_GRACE_H
#define GREENBOOST_GRACE_H

#include <stdint.h>

struct device;
struct hold;
struct ticket;

/* A GPU runs a hundred times as many or more. */
#define GRACE_THREADS 4096

/* Launches that are remembered, of all streams. */
#define GRACE_LAUNCHES 16

struct graced {
	uint64_t stream; /* stream_key */
	uint32_t followers; /* launches of the stream behind it that named something too */
	uint32_t count, room;
	uint32_t *chunks;
};

/* Guarded by the device's lock, in which all of the functions are called. */
struct grace {
	struct graced launches[GRACE_LAUNCHES]; /* the oldest first */
	uint32_t count;
	uint64_t chunks; /* of all of them */
};

/* A kernel has been given to its stream; the ticket is its end. What it names is still held. */
void grace_launched(struct device *device, const struct hold *hold, struct ticket *ticket);

/* The chunks' allocation ends. */
void grace_forget(struct device *device, uint32_t first, uint64_t chunks);

#endif
