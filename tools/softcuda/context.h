/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Contexts, and which of them each thread has current. */
#ifndef SOFTCUDA_CONTEXT_H
#define SOFTCUDA_CONTEXT_H

#include <stdatomic.h>

#include "handle.h"
#include "queue.h"

#define CONTEXT_LIMITS 10

/*
 * Never freed, so that a thread which still has a destroyed one current gets an
 * error. A primary context is used again when it is retained again.
 */
struct CUctx_st {
	enum kind kind;
	bool primary;
	atomic_bool destroyed;
	CUdevice device;
	uint64_t id;
	unsigned int flags;
	unsigned int refs; /* of a primary context; context_lock */
	struct queue_group group;
	CUstream streams; /* all of them, the legacy one too; stream.c's lock */
	CUstream legacy;
	_Atomic size_t limits[CONTEXT_LIMITS];
	atomic_int cache_config;
	atomic_uint peers; /* devices whose access was enabled, a bit each */
	struct CUctx_st *next;
};

/* A stream 0x2 of a thread. */
struct thread_stream {
	struct thread_stream *next;
	CUstream stream;
};

/* What each thread has of its own. */
struct thread {
	CUcontext *stack;
	size_t depth, room;
	struct thread_stream *streams;
	uint64_t id; /* never used twice */
	int capture_mode; /* as cuThreadExchangeStreamCaptureMode sets it */
};

CUresult contexts_init(int devices);

/* The calling thread's; NULL when there is no memory for it. */
struct thread *thread_self(void);

/* The calling thread's current context, or NULL. */
CUcontext context_current(void);

/* Waits for all that the contexts' streams have. */
void contexts_wait(void);

/* Whether a handle is a context that can be used. */
CUresult context_check(CUcontext context);

#endif
