// SPDX-License-Identifier: GPL-2.0-or-later
#include "timing.h"

#include <stdlib.h>

void timing_init(struct timing *timing)
{
	pthread_mutex_init(&timing->lock, NULL);
}

CUevent timing_mark(struct timing *timing, CUstream stream, unsigned int variant)
{
	CUevent event = NULL;

	pthread_mutex_lock(&timing->lock);
	if (timing->count)
		event = timing->spare[--timing->count];
	pthread_mutex_unlock(&timing->lock);
	/* Blocking: who writes the times down is to sleep meanwhile, not to spin. */
	if (!event && driver.cuEventCreate(&event, CU_EVENT_BLOCKING_SYNC))
		return NULL;
	if (!driver_event_record(event, stream, variant))
		return event;
	timing_put(timing, event);
	return NULL;
}

void timing_put(struct timing *timing, CUevent event)
{
	if (!event)
		return;
	pthread_mutex_lock(&timing->lock);
	if (timing->count == timing->room) {
		size_t room = timing->room ? 2 * timing->room : 256;
		CUevent *grown = realloc(timing->spare, room * sizeof(*grown));

		if (grown) {
			timing->spare = grown;
			timing->room = room;
		}
	}
	if (timing->count < timing->room) {
		timing->spare[timing->count++] = event;
		event = NULL;
	}
	pthread_mutex_unlock(&timing->lock);
	if (event)
		driver.cuEventDestroy_v2(event);
}
