// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The driver has no memory for a mapping, which ends paging while a launch waits that may be
 * tried with less: it is told so, and not tried for ever.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "residency.h"

struct driver driver; /* is not called */

static uint64_t state[sizeof(struct state_header) / sizeof(uint64_t) + COUNTER_COUNT];
static struct device device = { .lock = PTHREAD_MUTEX_INITIALIZER,
				.changed = PTHREAD_COND_INITIALIZER,
				.work = PTHREAD_COND_INITIALIZER,
				.chunk = 2 << 20,
				.slots_allowed = 8,
				.terms.ram = 64 << 20,
				.state = (struct state_header *)state };

static void *pager(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&device.lock);
	while (!device.wanted)
		pthread_cond_wait(&device.work, &device.lock);
	device.stopped = true;
	device.stop_error = CUDA_ERROR_OUT_OF_MEMORY;
	pthread_cond_broadcast(&device.changed);
	pthread_mutex_unlock(&device.lock);
	return NULL;
}

int main(void)
{
	struct allocation all = { .bytes = 32 << 20, .chunks = 16, .indexes = 16 };
	struct span span = { .allocation = &all, .end = 32 << 20 };
	struct hold hold = { .where = HOLD_EXCESS };
	CUresult result;
	pthread_t thread;

	device.chunks = calloc(16, sizeof(*device.chunks));
	predict_init(&device.predictor, calloc(16, sizeof(struct history)),
		     calloc(64, sizeof(struct past)), 64);
	pthread_create(&thread, NULL, pager, NULL);
	alarm(20); /* the launch would have the lock, and the processor */
	result = residency_hold(&device, &span, 1, &hold);
	pthread_join(thread, NULL);
	if (result != CUDA_ERROR_OUT_OF_MEMORY)
		puts("that paging has ended is not told");
	return result != CUDA_ERROR_OUT_OF_MEMORY;
}

const char *driver_error(CUresult error)
{
	(void)error;
	return "";
}
