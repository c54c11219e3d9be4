// SPDX-License-Identifier: GPL-2.0-or-later
/* VRAM slots: who leaves them, who enters, and how. */
#define _GNU_SOURCE
#include "pager.h"

#include <string.h>

#include "log.h"

/* How many chunks to ask about before taking one that the device still uses. */
#define VICTIM_TRIES 4

/* False: nothing may leave now, as nobody knows what still uses it. */
static bool all_seen(struct device *device)
{
	CUresult result;

	if (device->quiet)
		return true;
	let_go(device);
	result = residency_wait_for_the_unseen(device);
	take_back(device);
	if (result == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
		log_warn("VRAM is full, and what was launched before it was cannot be waited for "
			 "while a stream is captured");
	else if (result)
		pager_stop(device, "waiting for earlier work", result);
	return !result;
}

/*
 * Wait until nothing uses the chunk, which is SINKING, and find out whether VRAM still
 * has what the copies below it have; sum: the checksum of what it has.
 */
static CUresult settle(struct device *device, struct chunk *chunk, struct checksum *sum,
		       bool *clean)
{
	struct mover *mover = &device->mover;
	struct ticket *uses[CHUNK_USES];
	CUresult result = CUDA_SUCCESS;

	for (int i = 0; i < CHUNK_USES; i++) {
		uses[i] = chunk->uses[i];
		chunk->uses[i] = NULL;
	}
	let_go(device);
	for (int i = 0; i < CHUNK_USES; i++) {
		if (!result)
			result = ticket_wait(uses[i]);
		ticket_put(uses[i]);
	}
	if (!result)
		result = ticket_wait(chunk->arrival);
	summer_init(&device->summer);
	*sum = (struct checksum){ { 0, 0 } };
	if (!result && device->summer.kernel)
		result = summer_take(&device->summer, mover->alias + chunk->slot * mover->chunk,
				     mover->chunk, sum);
	take_back(device);
	*clean = chunk->summed && (!ram_none(chunk->ram) || chunk->extent) &&
		 !memcmp(sum, &chunk->sum, sizeof(*sum));
	return result;
}

/*
 * Take the chunk off the application's address, after writing it back to RAM unless
 * there is a copy below that is as good. False: no room below.
 */
static bool sink(struct device *device, uint32_t index)
{
	struct chunk *chunk = &device->chunks[index];
	struct vram_slot *slot = &device->mover.vram[chunk->slot];
	struct ticket *saved = NULL;
	struct checksum sum;
	CUresult result;
	bool clean;

	pager_set_state(device, index, SINKING);
	if (!all_seen(device)) {
		pager_set_state(device, index, RESIDENT);
		return false;
	}
	result = settle(device, chunk, &sum, &clean);
	if (!result && !clean) {
		lower_drop_extent(device, index);
		if (ram_none(chunk->ram)) {
			chunk->ram = lower_make_ram(device);
			device->copies += !ram_none(chunk->ram);
		}
		if (ram_none(chunk->ram)) {
			pager_set_state(device, index, RESIDENT);
			return false;
		}
	}
	let_go(device);
	if (!result && !clean) {
		saved = mover_copy_down(&device->mover, chunk->slot, chunk->ram);
		result = saved ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
	}
	if (!result)
		result = mover_unmap(&device->mover, chunk->address);
	take_back(device);
	if (result) {
		ticket_put(saved);
		pager_stop(device, "moving a chunk out of VRAM", result);
		return false;
	}
	if (!clean) {
		ticket_put(mover_ram_slot(&device->mover, chunk->ram)->busy);
		mover_ram_slot(&device->mover, chunk->ram)->busy = ticket_get(saved);
		chunk->summed = device->summer.kernel;
		chunk->sum = sum;
		device_count(device, COUNTER_D2H_BYTES, device->chunk);
	}
	ticket_put(slot->busy);
	slot->busy = saved;
	slot->chunk = NO_SLOT;
	device->slots_used--;
	device->copies -= !ram_none(chunk->ram);
	ticket_put(chunk->arrival);
	chunk->arrival = NULL;
	chunk->slot = NO_SLOT;
	chunk->home = ram_none(chunk->ram) ? HOME_T3 : HOME_T2;
	device_count(device, COUNTER_EVICTIONS, 1);
	device_count(device, COUNTER_EVICTIONS_CLEAN, clean);
	pager_set_state(device, index, ABSENT);
	return true;
}

/* Is the device done with the chunk? Asks the driver. */
static bool uses_over(struct device *device, uint32_t index)
{
	struct ticket *uses[CHUNK_USES];
	bool over = device->quiet;

	for (int i = 0; i < CHUNK_USES; i++)
		uses[i] = ticket_get(device->chunks[index].uses[i]);
	let_go(device);
	for (int i = 0; i < CHUNK_USES; i++) {
		over = over && ticket_poll(uses[i]);
		ticket_put(uses[i]);
	}
	take_back(device);
	return over;
}

static bool may_leave(const struct device *device, uint32_t index)
{
	const struct chunk *chunk = &device->chunks[index];

	return chunk->state == RESIDENT && !chunk->holds && !chunk->fixed;
}

/* Of the resident chunks the one needed last; PREDICT_NONE if none may leave. */
static uint32_t needed_last(const struct device *device, const uint32_t *except,
			    uint32_t exceptions, uint64_t *when)
{
	uint32_t best = PREDICT_NONE;

	*when = 0;
	for (uint32_t i = 0; i < device->mover.slots; i++) {
		uint32_t c = device->mover.vram[i].chunk;
		uint64_t next;
		bool skip = c == NO_SLOT || !may_leave(device, c);

		for (uint32_t e = 0; e < exceptions && !skip; e++)
			skip = except[e] == c;
		if (skip)
			continue;
		next = device->chunks[c].sticky
			       ? 0
			       : predict_next_use(&device->predictor, &device->history[c]);
		if (best == PREDICT_NONE || next > *when) {
			best = c;
			*when = next;
		}
	}
	return best;
}

/*
 * The chunk to leave VRAM. For a launch that waits: the one needed last, rather
 * one that the device is done with. For looking ahead: only one that it is done
 * with and that will not be needed as soon.
 */
static uint32_t vram_victim(struct device *device, bool ahead)
{
	uint32_t tried[VICTIM_TRIES];
	uint64_t when;

	for (uint32_t n = 0; n < VICTIM_TRIES; n++) {
		uint32_t best = needed_last(device, tried, n, &when);

		if (best == PREDICT_NONE ||
		    (ahead && when <= device->predictor.now + PREFETCH_MOST))
			break;
		if (uses_over(device, best) && may_leave(device, best))
			return best;
		tried[n] = best;
	}
	return ahead ? PREDICT_NONE : needed_last(device, NULL, 0, &when);
}

/* A free VRAM slot, made if it may be; NO_SLOT: some chunk has to leave first. */
static uint32_t free_slot(struct device *device)
{
	struct mover *mover = &device->mover;

	if (device->slots_used < mover->slots_existing) {
		for (uint32_t i = 0; i < mover->slots; i++)
			if (mover->vram[i].exists && mover->vram[i].chunk == NO_SLOT)
				return i;
	}
	if (mover->slots_existing < device->slots_allowed) {
		uint32_t i = 0, slots;
		CUresult result;

		while (mover->vram[i].exists)
			i++;
		let_go(device);
		result = mover_create_slot(mover, i);
		take_back(device);
		if (result == CUDA_SUCCESS)
			return i;
		/* Somebody else's memory: make do with what there is. */
		slots = device->slots_allowed = mover->slots_existing;
		device_gauge(device, COUNTER_VRAM_SLOTS, slots);
		/* Or it admits what has no place. Refused, it is told again before the next
		 * allocation. */
		let_go(device);
		if (residency_announce(device, slots))
			log_warn("there is less VRAM than was counted on, and not enough below it");
		take_back(device);
	}
	return NO_SLOT;
}

bool vram_rise(struct device *device, uint32_t index, bool ahead)
{
	struct chunk *chunk = &device->chunks[index];
	struct mover *mover = &device->mover;
	bool fresh = chunk->home == HOME_EMPTY;
	struct ticket *arrival;
	CUresult result;
	uint32_t slot;

	while ((slot = free_slot(device)) == NO_SLOT) {
		uint32_t victim;

		/* Only if the driver had less VRAM than was promised: allocations see to it
		 * otherwise. */
		if (!device->paging) {
			let_go(device);
			residency_begin_paging(device);
			take_back(device);
		}
		victim = device->stopped ? PREDICT_NONE : vram_victim(device, ahead);

		if (victim == PREDICT_NONE || !sink(device, victim))
			return false;
	}
	/* The lock was let go: what is to be done may have changed. */
	if (chunk->state != ABSENT || (chunk->home != HOME_EMPTY && chunk->home != HOME_T2) ||
	    fresh != (chunk->home == HOME_EMPTY))
		return true;
	pager_set_state(device, index, RISING);
	mover->vram[slot].chunk = index;
	device->slots_used++;
	let_go(device);

	/* A fresh chunk has nothing to copy, but its slot's last tenant may still be leaving. */
	arrival =
		fresh ? ticket_get(mover->vram[slot].busy) : mover_copy_up(mover, chunk->ram, slot);
	result = !fresh && !arrival ? CUDA_ERROR_UNKNOWN : mover_map(mover, chunk->address, slot);

	take_back(device);
	if (result) {
		ticket_put(arrival);
		pager_stop(device, "moving a chunk into VRAM", result);
		return false;
	}
	ticket_put(mover->vram[slot].busy);
	mover->vram[slot].busy = NULL;
	if (!fresh) {
		/* What it is copied from is kept for when it leaves: it may not have changed by
		 * then. */
		ticket_put(mover_ram_slot(mover, chunk->ram)->busy);
		mover_ram_slot(mover, chunk->ram)->busy = ticket_get(arrival);
		device->copies++;
		if (!chunk->summed)
			lower_forget_copy(device, index);
		predict_arrival(&device->history[index]);
		device_count(device, COUNTER_H2D_BYTES, device->chunk);
		device_count(device, COUNTER_PREFETCHED, ahead);
	}
	chunk->arrival = arrival;
	chunk->slot = slot;
	chunk->home = HOME_T1;
	pager_set_state(device, index, RESIDENT);
	return true;
}

/* Is anything kept in VRAM only until a launch or copy that is just being made has been made? */
static bool held_for_a_moment(const struct device *device)
{
	for (uint32_t i = 0; i < device->mover.slots; i++) {
		uint32_t c = device->mover.vram[i].chunk;

		if (c != NO_SLOT && device->chunks[c].holds && !device->chunks[c].fixed)
			return true;
	}
	return false;
}

void vram_give_up_slot(struct device *device)
{
	struct mover *mover = &device->mover;
	uint32_t i = 0, victim;
	CUresult result;

	while (i < mover->slots && (!mover->vram[i].exists || mover->vram[i].chunk != NO_SLOT))
		i++;
	if (i == mover->slots) {
		victim = vram_victim(device, false);
		if (victim == PREDICT_NONE && held_for_a_moment(device)) {
			pthread_cond_wait(&device->work, &device->lock);
		} else if (victim == PREDICT_NONE || !sink(device, victim)) {
			device->slots_allowed = mover->slots_existing; /* as few as can be */
			pthread_cond_broadcast(&device->changed);
		}
		return;
	}
	let_go(device);
	result = mover_destroy_slot(mover, i);
	take_back(device);
	if (result)
		pager_stop(device, "giving VRAM back", result);
	pthread_cond_broadcast(&device->changed);
}
