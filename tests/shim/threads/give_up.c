// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A slot is to be given up while all that is in VRAM is held for a launch that is
 * just being made: that is waited for, it does not mean that no slot can go.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "vram.c"

struct driver driver; /* is not called */

static struct device device = { .lock = PTHREAD_MUTEX_INITIALIZER,
				.changed = PTHREAD_COND_INITIALIZER,
				.work = PTHREAD_COND_INITIALIZER,
				.quiet = true };
static struct chunk chunk = {
	.state = RESIDENT, .home = HOME_T1, .holds = 1, .ram = { UINT16_MAX, UINT16_MAX }
};
static struct vram_slot slot = { .exists = true };
static bool launched;

const char *driver_error(CUresult error)
{
	(void)error;
	return "";
}

void fault_say(struct device *locked)
{
	(void)locked; /* no kernel goes wrong */
}

struct ram_place lower_make_ram(struct device *d)
{
	(void)d;
	return NO_RAM;
}

bool in_place_begin(struct device *d, uint32_t index)
{
	(void)d, (void)index; /* device->maps is not set */
	return false;
}

void lower_drop_extent(struct device *d, uint32_t index)
{
	(void)d, (void)index;
}

void lower_forget_copy(struct device *d, uint32_t index)
{
	(void)d, (void)index;
}

void summer_init(struct summer *summer)
{
	(void)summer; /* no kernel: every chunk counts as changed */
}

CUresult summer_take(struct summer *summer, CUdeviceptr data, size_t bytes, struct checksum *sum)
{
	(void)summer, (void)data, (void)bytes, (void)sum;
	return CUDA_ERROR_UNKNOWN;
}

void pager_set_state(struct device *d, uint32_t index, enum chunk_state state)
{
	(void)d, (void)index;
	chunk.state = (uint8_t)state;
}

void pager_stop(struct device *d, const char *what, CUresult error)
{
	(void)d, (void)what, (void)error;
}

static void *launch(void *arg)
{
	(void)arg;
	nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
	pthread_mutex_lock(&device.lock);
	launched = true;
	chunk.holds--;
	pthread_cond_signal(&device.work);
	pthread_mutex_unlock(&device.lock);
	return NULL;
}

int main(void)
{
	struct history history = { 0 };
	struct past log[4];
	pthread_t thread;

	device.chunks = &chunk;
	predict_init(&device.predictor, &history, log, 4);
	predict_moved(&device.predictor, 0, PLACE_VRAM, false);
	device.slots_allowed = 0;
	device.mover = (struct mover){ .slots = 1, .slots_existing = 1, .vram = &slot };
	pthread_create(&thread, NULL, launch, NULL);
	pthread_mutex_lock(&device.lock);
	vram_give_up_slot(&device);
	if (!launched || device.slots_allowed) {
		puts("the slot stays because of a hold of a moment");
		return 1;
	}
	/* Now it is nobody's, but has nowhere to go: that is for good. */
	vram_give_up_slot(&device);
	pthread_mutex_unlock(&device.lock);
	pthread_join(thread, NULL);
	if (device.slots_allowed == 1)
		return 0;
	puts("it is given up for ever");
	return 1;
}
