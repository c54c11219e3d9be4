// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A launch names what is used in place while another waits for chunks: it takes its turn, whatever
 * the launch before it, of which its hold still has traces, could use there.
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "residency.h"

struct driver driver; /* is not called */

static uint64_t state[sizeof(struct state_header) / sizeof(uint64_t) + COUNTER_COUNT];
static unsigned char state_map[16];
static struct device device = { .lock = PTHREAD_MUTEX_INITIALIZER,
				.changed = PTHREAD_COND_INITIALIZER,
				.work = PTHREAD_COND_INITIALIZER,
				.chunk = 2 << 20,
				.slots_allowed = 20,
				.mapped = 16,
				.state = (struct state_header *)state,
				.state_map = state_map };
static struct hold hold = { .where = HOLD_EXCESS, .little = { .chunks = 16 } }, other;
static bool pushed_in;

static void *pager(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&device.lock);
	while (!hold.count) {
		pthread_mutex_unlock(&device.lock);
		sched_yield();
		pthread_mutex_lock(&device.lock);
	}
	pushed_in = device.wanted != &other;
	device.wanted = NULL;
	for (uint32_t c = 0; c < 16; c++)
		device.chunks[c].state = RESIDENT;
	pthread_cond_broadcast(&device.changed);
	pthread_mutex_unlock(&device.lock);
	return NULL;
}

int main(void)
{
	struct allocation all = { .bytes = 32 << 20, .chunks = 16, .indexes = 16 };
	struct span span = { .allocation = &all, .end = 32 << 20 };
	CUresult result;
	pthread_t thread;

	device.chunks = calloc(16, sizeof(*device.chunks));
	for (uint32_t c = 0; c < 16; c++)
		device.chunks[c].state = MAPPED;
	predict_init(&device.predictor, calloc(16, sizeof(struct history)),
		     calloc(64, sizeof(struct past)), 64);
	device.wanted = &other;
	pthread_create(&thread, NULL, pager, NULL);
	result = residency_hold(&device, &span, 1, &hold);
	pthread_join(thread, NULL);
	if (pushed_in)
		puts("the other is waited for by nobody any more");
	return result || pushed_in;
}

const char *driver_error(CUresult error)
{
	(void)error;
	return "";
}
