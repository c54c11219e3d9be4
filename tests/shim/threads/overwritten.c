// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a copy overwrites is dropped from T3: before anybody can spill it anew,
 * also when the copy cannot be made after all, and without memory not at all.
 */
#include <stdio.h>

#include "residency.h"

static void *grow(void *memory, size_t bytes);
static void post(struct client *client, struct message *request, client_done done, void *arg);

#include <stdlib.h>
#define realloc grow
#define client_post post
#include "residency.c"
#undef realloc

struct driver driver; /* is not called */

static struct device device = { .map.low = UINT64_MAX,
				.lock = PTHREAD_MUTEX_INITIALIZER,
				.changed = PTHREAD_COND_INITIALIZER,
				.work = PTHREAD_COND_INITIALIZER,
				.chunk = 1 << 20,
				.slots_allowed = 8 };
static int growths_left, drops, held_drops;

const char *driver_error(CUresult error)
{
	(void)error;
	return "";
}

static void *grow(void *memory, size_t bytes)
{
	return growths_left-- > 0 ? realloc(memory, bytes) : NULL;
}

static void post(struct client *client, struct message *request, client_done done, void *arg)
{
	(void)client, (void)request, (void)done, (void)arg;
	drops++;
	held_drops += device.chunks[0].holds && device.chunks[1].holds;
}

/* A pager that finds that the copy cannot be made. */
static void *refuse(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&device.lock);
	while (!device.wanted)
		pthread_cond_wait(&device.work, &device.lock);
	device.failure = CUDA_ERROR_OUT_OF_MEMORY;
	pthread_cond_broadcast(&device.changed);
	pthread_mutex_unlock(&device.lock);
	return NULL;
}

/* A copy over both chunks, each its own span, is refused. Returns false if anything is held. */
static bool overwrite(struct allocation *a)
{
	struct span spans[] = {
		{ .allocation = a, .begin = 0, .end = 1 << 20, .overwritten = true },
		{ .allocation = a, .begin = 1 << 20, .end = 2 << 20, .overwritten = true },
	};
	struct hold hold = { .where = HOLD_APART };
	pthread_t pager;

	for (int i = 0; i < 2; i++)
		device.chunks[i] = (struct chunk){
			.home = HOME_T3, .extent = true, .slot = NO_SLOT, .ram = NO_RAM
		};
	drops = held_drops = 0;
	pthread_create(&pager, NULL, refuse, NULL);
	if (residency_hold(&device, spans, 2, &hold) != CUDA_ERROR_OUT_OF_MEMORY)
		return false;
	pthread_join(pager, NULL);
	return !device.chunks[0].holds && !device.chunks[1].holds;
}

int main(void)
{
	struct allocation *a;

	device.state = calloc(1, sizeof(*device.state) + COUNTER_COUNT * sizeof(uint64_t));
	device.state_map = calloc(2, 1);
	device.chunks = calloc(2, sizeof(*device.chunks));
	predict_init(&device.predictor, calloc(2, sizeof(struct history)),
		     calloc(64, sizeof(struct past)), 64);
	a = alloc_map_add(&device.map, 1 << 20, 2 << 20, 0, 2);
	for (int growths = 0; growths <= 2; growths++) {
		growths_left = growths;
		if (!overwrite(a) || drops != growths || held_drops != drops) {
			printf("%d of %d dropped, %d of them while they were held\n", drops,
			       growths, held_drops);
			return 1;
		}
	}
	return 0;
}
