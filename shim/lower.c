// SPDX-License-Identifier: GPL-2.0-or-later
/* Room in RAM: what is free, copies that are given up for it, and who is spilled. */
#define _GNU_SOURCE
#include <errno.h>

#include "in_place.h"
#include "log.h"
#include "pager.h"

/* Spilled at a time: enough to keep the disk busy, little of RAM. */
#define SPILL_SHARE 8
#define SPILL_MOST 4

/* Given up at a time when T3 is full: a few spills' worth. */
#define EXTENTS_AT_ONCE 16

/* Copies of what is in VRAM for which another arena is asked for: 1/2 of VRAM. */
#define COPY_SHARE 2

/*
 * One that a launch waits for goes only before nothing can move at all: with every RAM
 * slot full of what is wanted, no chunk could leave VRAM for it.
 */
static enum predict_leave may_spill(void *arg, uint32_t index)
{
	const struct device *device = arg;
	const struct chunk *chunk = &device->chunks[index];

	/* From an arena that leaves it goes anyway, and leaves no room. */
	if (chunk->state != ABSENT || chunk->home != HOME_T2 || lower_leaving(device, index))
		return LEAVE_NOT;
	if (device->doubt && chunk->extent)
		return LEAVE_NOT;
	return chunk->holds ? LEAVE_LAST : LEAVE_CLEAN;
}

/* Of the chunks at home in T2 the one needed last; PREDICT_NONE if there is none. */
static uint32_t spill_victim(struct device *device)
{
	return predict_victim(&device->predictor, PLACE_RAM, HASTE_HURRY, may_spill, device);
}

void lower_forget_copy(struct device *device, uint32_t index)
{
	struct chunk *chunk = &device->chunks[index];

	mover_put_ram(&device->mover, chunk->ram);
	chunk->ram = NO_RAM;
	device->copies--;
}

/* One copy less of what is in VRAM. Those of chunks that stay there for long go for good this way,
 * and those of chunks that come and go remain. */
static bool give_up_copy(struct device *device)
{
	const struct mover *mover = &device->mover;

	for (uint32_t i = 0; device->copies && i < mover->slots; i++) {
		uint32_t c = mover->vram[device->copy_hand].chunk;

		device->copy_hand = (device->copy_hand + 1) % mover->slots;
		if (c != NO_SLOT && device->chunks[c].state == RESIDENT &&
		    !ram_none(device->chunks[c].ram)) {
			lower_forget_copy(device, c);
			return true;
		}
	}
	return false;
}

struct ram_place lower_take_ram(struct device *device)
{
	struct ram_place place;

	do {
		place = mover_take_ram(&device->mover);
	} while (ram_none(place) && give_up_copy(device));
	return place;
}

uint32_t lower_ram_available(struct device *device)
{
	uint32_t slots, available;

	mover_count_ram(&device->mover, &slots, &available);
	return available + device->copies < slots ? available + device->copies : slots;
}

bool lower_give_up_extents(struct device *device)
{
	uint32_t dropped[EXTENTS_AT_ONCE], count = 0;
	bool left = false;

	for (uint32_t i = 0; i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];

		for (uint32_t c = a->first; c < a->first + a->chunks; c++) {
			struct chunk *chunk = &device->chunks[c];

			bool in_ram = chunk->state == ABSENT && chunk->home == HOME_T2;

			if (!chunk->extent || (!in_ram && !chunk_usable(chunk)))
				continue;
			if (in_ram && !chunk->holds) {
				lower_spill(device, c);
				left = true;
			} else if (count < EXTENTS_AT_ONCE) {
				chunk->extent = false;
				dropped[count++] = c;
			}
		}
	}
	if (count) {
		let_go(device);
		residency_drop_extents(device, dropped, count);
		take_back(device);
	}
	return left || count;
}

uint32_t lower_ram_slots(struct device *device)
{
	uint32_t slots, available;

	mover_count_ram(&device->mover, &slots, &available);
	return slots;
}

static bool ram_free(struct device *device)
{
	uint32_t slots, available;

	mover_count_ram(&device->mover, &slots, &available);
	return available > 0;
}

/* What is being read has a place here and one in T3, and will leave one of them. False: nothing is
 * being read. */
static bool await_a_fetch(struct device *device)
{
	uint32_t fetches = device->fetches;

	while (fetches && device->fetches == fetches && !ram_free(device) && !device->stopped)
		pthread_cond_wait(&device->changed, &device->lock);
	return fetches;
}

/* Another arena, but not before every spill: there was none a moment ago. */
static bool get_arena_at_times(struct device *device)
{
	if (!device->arena_refusals)
		return lower_more_ram(device);
	device->arena_refusals--;
	return false;
}

struct ram_place lower_make_ram(struct device *device)
{
	device->spill_error = 0;
	while (!device->stopped) {
		struct ram_place place = mover_take_ram(&device->mover);
		uint32_t ahead = lower_ram_slots(device) / SPILL_SHARE;
		uint32_t victim = PREDICT_NONE;

		if (!ram_none(place)) {
			lower_ask_early(device);
			return place;
		}
		if (device->copies > device->slots_allowed / COPY_SHARE && give_up_copy(device))
			continue;
		/* Nobody waits for an arena while there are copies to give up. */
		if (!device->spills && device->copies && !device->arena_refusals &&
		    !device->recall_count)
			lower_ask_for_arena(device);
		if (give_up_copy(device))
			continue;
		/* All else needs a daemon. */
		if (device->doubt) {
			pthread_cond_wait(&device->changed, &device->lock);
			continue;
		}
		if (!device->spills && get_arena_at_times(device))
			continue;
		if (device->doubt)
			continue; /* by now */
		if (device->spill_error == ENOSPC &&
		    (lower_give_up_extents(device) || await_a_fetch(device))) {
			device->spill_error = 0;
			continue;
		}
		/* Before it is given up, T2 is asked whatever it said before. */
		if (device->spill_error && !device->spills && lower_more_ram(device))
			continue;
		if (device->spill_error) {
			if (device->spill_error == ENOSPC)
				log_warn("no tier has room for another chunk");
			return NO_RAM;
		}
		/* Some more than the one needed, so that the next need not wait. */
		ahead = ahead < 1 ? 1 : ahead > SPILL_MOST ? SPILL_MOST : ahead;
		/* One that fails at once (the daemon is gone) must not be tried for ever. */
		for (uint32_t n = device->spills; n < ahead && !device->spill_error &&
						  (victim = spill_victim(device)) != PREDICT_NONE;
		     n++)
			lower_spill(device, victim);
		/* A spill may be over already: starting one lets go of the lock. */
		if (ram_free(device) || device->doubt)
			continue;
		/* What was used in place can be spilled, too. */
		if (!device->spills && in_place_end_any(device, false))
			continue;
		if (!device->spills && lower_more_ram(device))
			continue;
		if (!device->spills && in_place_end_any(device, true))
			continue;
		/* What is being fetched can be spilled once it is there. */
		if (!device->spills && !device->fetches) {
			if (!device->spill_error)
				log_warn("no tier has room for another chunk");
			return NO_RAM;
		}
		pthread_cond_wait(&device->changed, &device->lock);
	}
	return NO_RAM;
}
