/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events that take the time of device work, kept for the next time. One pool a device. */
#ifndef GREENBOOST_TIMING_H
#define GREENBOOST_TIMING_H

#include <pthread.h>
#include <stddef.h>

#include "driver.h"

struct timing {
	pthread_mutex_t lock; /* guards what follows */
	CUevent *spare; /* events nobody uses */
	size_t count, room;
};

/* Around some work in a stream. NULL: it is not known when that was. */
struct span_of_time {
	CUevent before, after;
};

void timing_init(struct timing *timing);

/* Note a place in the stream, of the current context. NULL: the driver refused. */
CUevent timing_mark(struct timing *timing, CUstream stream, unsigned int variant);

/* The event (NULL is allowed) is not wanted any more. */
void timing_put(struct timing *timing, CUevent event);

#endif
