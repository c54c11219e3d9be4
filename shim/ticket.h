/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A ticket is a place in a stream that can be waited for: a counted reference
 * to a recorded event. Whoever must not touch memory before some device work is
 * done holds a ticket of that work.
 */
#ifndef GREENBOOST_TICKET_H
#define GREENBOOST_TICKET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "driver.h"

struct ticket {
	CUevent event;
	CUcontext context; /* of the event; NULL: it ended */
	atomic_uint references;
	atomic_bool done; /* seen complete; never goes back */
	_Atomic uint64_t
		stream; /* stream_key of where it was recorded; 0: of no comparable stream */
	uint64_t sequence; /* of two in one stream the greater is done later */
	struct ticket *next; /* in the pool of unused ones */
};

/*
 * Streams are compared by key: the per-thread default stream is a different
 * stream in each thread though its handle is the same.
 */
uint64_t stream_key(CUstream stream, unsigned int variant);

/* Record a place in the stream. Returns one reference, or NULL: the driver refused. */
struct ticket *ticket_record(CUstream stream, unsigned int variant);

/* Set when a kernel has gone wrong: no ticket of its context is ever done. */
extern atomic_bool tickets_spoilt;

struct ticket *ticket_get(struct ticket *ticket);
void ticket_put(struct ticket *ticket); /* NULL is allowed */

/* Complete? Asks the driver unless that is known. NULL is complete. Must not be called in a lock
 * that launches take. */
bool ticket_poll(struct ticket *ticket);

/* What is known without asking. */
static inline bool ticket_done(struct ticket *ticket)
{
	return !ticket || atomic_load_explicit(&ticket->done, memory_order_acquire);
}

CUresult ticket_wait(struct ticket *ticket); /* on the host */
CUresult ticket_wait_on(struct ticket *ticket, CUstream stream,
			unsigned int variant); /* on the device */

/* The context and its events are about to end. */
void tickets_forget_context(CUcontext context);

/* The handle of a destroyed stream may name a new one: no ticket may be taken for its. */
void tickets_forget_stream(uint64_t key);

#endif
