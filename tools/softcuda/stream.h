/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Streams: handles of queues, each in a context. */
#ifndef SOFTCUDA_STREAM_H
#define SOFTCUDA_STREAM_H

#include "context.h"

struct capture;

struct CUstream_st {
	enum kind kind;
	CUcontext context;
	struct queue *queue;
	unsigned int flags;
	int priority;
	CUstream next; /* in its context; stream.c's lock */
	/* What its work is captured into; NULL when it runs. capture.c's lock. */
	struct capture *_Atomic capture;
	CUgraphNode *deps; /* while capturing: what the next node comes after; capture.c's lock */
	size_t dep_count;
	CUstream next_captured; /* of the same capture; capture.c's lock */
};

/* Above the flags that programs may give. */
#define STREAM_LEGACY 0x10000u

/* Priorities go from 0 down to this; they are kept, and change nothing. */
#define GREATEST_PRIORITY (-5)

/* NULL: no memory. */
CUstream stream_create(CUcontext context, unsigned int flags, int priority);
void stream_destroy(CUstream stream);

/* Makes all streams of a context invalid but its legacy one. */
void streams_end(CUcontext context);

/*
 * The stream that a handle means: 0 is the legacy stream or, with per_thread,
 * the calling thread's own. NULL: the handle is invalid.
 */
CUstream stream_resolve(CUstream handle, bool per_thread);

/*
 * Submits work, or captures it into a graph where the stream is capturing.
 * Takes over the reference, also when it fails; NULL work means no memory.
 */
CUresult stream_submit(CUstream stream, struct work *work);

/* The same, and waits until it is done. Refused while capturing. */
CUresult stream_submit_and_wait(CUstream stream, struct work *work);

#endif
