/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events: the last place in a stream's work, or in a capture, that each was recorded at. */
#ifndef SOFTCUDA_EVENT_H
#define SOFTCUDA_EVENT_H

#include "context.h"

struct record;

struct CUevent_st {
	enum kind kind;
	unsigned int flags;
	CUcontext context;
	struct point point; /* event.c's lock */
	struct record *record; /* NULL: never recorded; event.c's lock */
	/* Where it was last recorded in a capture; 0: in none. capture.c's lock. */
	_Atomic uint64_t capture;
	CUgraphNode *deps;
	size_t dep_count;
};

/* Record the event at the end of what the queue has now. */
CUresult event_record(CUevent event, struct queue *queue);

/* Where the event was last recorded, now; referenced. */
struct point event_point(CUevent event);

#endif
