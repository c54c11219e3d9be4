/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One thing for a stream or a graph to do. Immutable once made, so that a graph
 * can be replayed on several streams at once; counted, since queues, graphs and
 * executable graphs share it.
 */
#ifndef SOFTCUDA_WORK_H
#define SOFTCUDA_WORK_H

#include <stdatomic.h>
#include <stdint.h>

#include "cuda_abi.h"

/* Where work runs. */
struct place {
	int device;
	uint64_t stream;
};

struct work {
	atomic_uint refs;
	int type; /* CU_GRAPH_NODE_TYPE_* */
	const char *name; /* for the report of a fault */
	void (*run)(struct work *work, const struct place *place);
	void (*release)(struct work *work); /* frees it */
};

/* Starts a work with one reference. */
void work_init(struct work *work, int type, const char *name,
	       void (*run)(struct work *work, const struct place *place),
	       void (*release)(struct work *work));
struct work *work_get(struct work *work);
void work_put(struct work *work);

/* Runs it on this thread; a fault meanwhile is reported as this work's. */
void work_run(struct work *work, const struct place *place);

/* The work that this thread is running, or NULL. Safe in a signal handler. */
const struct work *work_current(void);

/* The rest are the kinds of work that need no file of their own. NULL: no memory. */

/* Calls a host function. */
struct work *work_host(CUhostFn fn, void *user_data);

/* What it calls. */
CUDA_HOST_NODE_PARAMS work_host_params(const struct work *work);

/* Does nothing: a place in the order, which what graphs do themselves has too. */
struct work *work_empty(int type);

/* Several in a row, as one. */
struct work *work_sequence(struct work *const *items, size_t count);

#endif
