// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What is used in place is held by a launch that is just being made, while the pager wants it
 * in VRAM for another, or its RAM: that is waited for.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "pager.c"

struct driver driver; /* is not called */

static struct device device = { .map.low = UINT64_MAX,
				.lock = PTHREAD_MUTEX_INITIALIZER,
				.changed = PTHREAD_COND_INITIALIZER,
				.work = PTHREAD_COND_INITIALIZER,
				.chunk = 2 << 20,
				.slots_allowed = 1 };
static bool launching, too_early;

/* Its launch is made, once the pager waits. */
static void *launch(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&device.lock);
	while (!launching)
		pthread_cond_wait(&device.changed, &device.lock);
	launching = false;
	device.chunks[0].holds--;
	pthread_cond_signal(&device.work);
	pthread_mutex_unlock(&device.lock);
	return NULL;
}

static void begin_launch(void)
{
	device.chunks[0].holds++;
	launching = true;
	pthread_cond_broadcast(&device.changed);
}

/* It lets go of the lock: then the launch takes hold. */
bool vram_awaiting(struct device *d)
{
	static bool once;

	(void)d;
	if (!once)
		begin_launch();
	once = true;
	return false;
}

bool vram_held_for_a_moment(const struct device *d, const struct hold *but)
{
	(void)d, (void)but;
	return false;
}

void in_place_end(struct device *d, uint32_t index)
{
	too_early = d->chunks[index].holds > 1;
	d->chunks[index].state = RESIDENT; /* by and by */
}

bool in_place_begin(struct device *d, uint32_t index)
{
	if (d->chunks[0].holds)
		return false; /* RAM is full of it */
	d->chunks[index].state = MAPPED;
	return true;
}

/* The pager works for the hold until all is where it is to be. False: it gave up. */
static bool serve(struct hold *hold, uint32_t index)
{
	pthread_t other;

	pthread_create(&other, NULL, launch, NULL);
	device.failure = CUDA_SUCCESS;
	device.wanted = hold;
	hold->chunks = hold->in_place;
	hold->chunks[hold->count++] = index;
	device.chunks[index].holds++;
	while (wants_more(&device) && !too_early)
		pager_turn(&device);
	pthread_mutex_unlock(&device.lock);
	pthread_join(other, NULL);
	pthread_mutex_lock(&device.lock);
	device.chunks[index].holds--;
	return !device.failure;
}

int main(void)
{
	struct hold fits = { .where = HOLD_EXCESS };
	struct hold exceeds = { .where = HOLD_EXCESS, .exceeds = true, .ram = true };

	device.chunks = calloc(2, sizeof(*device.chunks));
	alloc_map_add(&device.map, 2 << 20, 4 << 20, 0, 2);
	pthread_mutex_lock(&device.lock);
	device.chunks[0] = (struct chunk){ .state = MAPPED, .home = HOME_T2, .slot = NO_SLOT };
	device.mapped = 1;
	if (!serve(&fits, 0) || too_early) {
		puts("it is taken away from who holds it");
		return 1;
	}
	device.chunks[0].state = MAPPED;
	device.chunks[1] = (struct chunk){ .home = HOME_T2, .slot = NO_SLOT };
	begin_launch();
	if (serve(&exceeds, 1))
		return 0;
	puts("a hold of a moment is taken for one that lasts");
	return 1;
}

/* ---- what else the pager is made of ---- */

const char *driver_error(CUresult error)
{
	(void)error;
	return "";
}

void fault_say(struct device *d)
{
	(void)d;
}

void in_place_free(struct device *d, uint32_t index)
{
	(void)d, (void)index;
}

uint32_t lower_ram_slots(struct device *d)
{
	(void)d;
	return 0;
}

void lower_show_ram(struct device *d)
{
	(void)d;
}

void lower_start_fetch(struct device *d, uint32_t index, struct ram_place place)
{
	(void)d, (void)index, (void)place;
}

struct ram_place lower_take_ram(struct device *d)
{
	(void)d;
	return NO_RAM;
}

struct ram_place lower_make_ram(struct device *d)
{
	(void)d;
	return NO_RAM;
}

uint32_t lower_ram_available(struct device *d)
{
	(void)d;
	return 0;
}

bool lower_more_ram(struct device *d)
{
	(void)d;
	return false;
}

bool lower_serve_recalls(struct device *d)
{
	(void)d;
	return false;
}

void *lower_opener(void *d)
{
	return d;
}

void *lower_closer(void *d)
{
	return d;
}

bool vram_rise(struct device *d, uint32_t index, bool ahead)
{
	(void)d, (void)index, (void)ahead;
	return false; /* there is no room */
}

void vram_see_what_is_over(struct device *d)
{
	(void)d;
}

bool vram_bus_has(struct device *d, uint32_t copies)
{
	(void)d, (void)copies;
	return false;
}

bool vram_bus_runs(const struct device *d)
{
	(void)d;
	return false;
}

void vram_look_again(struct device *d)
{
	(void)d;
}

void vram_give_up_slot(struct device *d)
{
	(void)d;
}
