// SPDX-License-Identifier: GPL-2.0-or-later
/* VRAM slots: who leaves them, who enters, and how. */
#define _GNU_SOURCE
#include "pager.h"

#include <string.h>
#include <time.h>

#include "fault.h"
#include "in_place.h"
#include "log.h"
#include "trace.h"

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

CUresult vram_settle(struct device *device, struct chunk *chunk, CUdeviceptr address,
		     struct checksum *sum, bool *same)
{
	struct ticket *uses[CHUNK_USES];
	CUresult result = CUDA_SUCCESS;
	uint64_t traced = trace_begin();

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
	trace_host(device, traced, "wait until it is unused", TRACE_NO_CHUNK, NULL);
	traced = trace_begin();
	summer_init(&device->summer);
	*sum = (struct checksum){ { 0, 0 } };
	if (!result && device->summer.kernel)
		result = summer_take(&device->summer, address, device->chunk, sum);
	trace_host(device, traced, "checksum", TRACE_NO_CHUNK, NULL);
	take_back(device);
	*same = chunk->summed && !memcmp(sum, &chunk->sum, sizeof(*sum));
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
	struct span_of_time time = { NULL, NULL };
	uint64_t traced = trace_begin();
	struct checksum sum;
	CUresult result;
	bool same, clean, changed;

	pager_set_state(device, index, SINKING);
	if (!all_seen(device)) {
		pager_set_state(device, index, RESIDENT);
		return false;
	}
	result = vram_settle(device, chunk, device->mover.alias + chunk->slot * device->mover.chunk,
			     &sum, &same);
	clean = same && (!ram_none(chunk->ram) || extent_holds(device, chunk));
	device->relying = !result && clean && ram_none(chunk->ram);
	/* Once it was below, not counting what has to be written because its copy was given up. */
	changed = chunk->summed && !same;
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
		saved = mover_copy_down(&device->mover, chunk->slot, chunk->ram,
					traced ? &time : NULL);
		result = saved ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
	}
	if (!result)
		result = mover_unmap(&device->mover, chunk->address);
	take_back(device);
	device->relying = false;
	if (result) {
		ticket_put(saved);
		pager_stop(device, "moving a chunk out of VRAM", result);
		return false;
	}
	if (!clean) {
		mover_use_ram(&device->mover, chunk->ram, ticket_get(saved));
		chunk->summed = device->summer.kernel;
		chunk->sum = sum;
		device_count(device, COUNTER_D2H_BYTES, device->chunk);
		trace_copy(device, &time, false, index, false);
	}
	ticket_put(slot->busy);
	slot->busy = saved;
	slot->chunk = NO_SLOT;
	device->slots_used--;
	device->copies -= !ram_none(chunk->ram);
	ticket_put(chunk->arrival);
	chunk->arrival = NULL;
	chunk->slot = NO_SLOT;
	guess_over(&chunk->guess);
	chunk->home = ram_none(chunk->ram) ? HOME_T3 : HOME_T2;
	predict_left(&device->predictor, index, changed);
	predict_moved(&device->predictor, index, chunk->home == HOME_T2 ? PLACE_RAM : PLACE_AWAY,
		      false);
	device_count(device, COUNTER_EVICTIONS, 1);
	device_count(device, COUNTER_EVICTIONS_CLEAN, clean);
	device_gauge(device, COUNTER_EVICTIONS_UNPLANNED, device->predictor.unplanned);
	trace_host(device, traced, "evict", index, clean ? "clean" : "written");
	pager_set_state(device, index, ABSENT);
	return true;
}

void vram_see_what_is_over(struct device *device)
{
	while (device->recent_count) {
		struct ticket *ticket = ticket_get(device->recent[device->recent_first]);
		bool over;

		let_go(device);
		over = ticket_poll(ticket);
		take_back(device);
		/* Only this thread takes from the ring, but a full one loses its oldest. */
		if (over && device->recent_count &&
		    device->recent[device->recent_first] == ticket) {
			ticket_put(ticket);
			device->recent_first = (device->recent_first + 1) % RECENT_MOST;
			device->recent_count--;
		}
		ticket_put(ticket);
		if (!over)
			break;
	}
	vram_bus_has(device, 1); /* vram_bus_runs() knows what it found */
	if (atomic_load_explicit(&tickets_spoilt, memory_order_relaxed))
		fault_say(device);
}

/* Does the device still use it, as far as is known? */
static bool busy(const struct chunk *chunk)
{
	bool used = false;

	for (int i = 0; i < CHUNK_USES; i++) {
		if (!ticket_done(chunk->uses[i]))
			return true;
		used = used || chunk->uses[i];
	}
	/* Uses wait for the arrival, and only of those is it noticed when they end. */
	return !used && !ticket_done(chunk->arrival);
}

/* As far as is known: whether it was changed is found out when it leaves. */
static enum predict_leave may_leave(void *arg, uint32_t index)
{
	const struct device *device = arg;
	const struct chunk *chunk = &device->chunks[index];

	if (chunk->state != RESIDENT || chunk->holds || chunk->fixed)
		return LEAVE_NOT;
	if (chunk->grace)
		return LEAVE_GRACE;
	if (chunk->sticky)
		return LEAVE_LAST;
	if (device->predictor.chunks[index].changes)
		return busy(chunk) ? LEAVE_BUSY_DIRTY : LEAVE_DIRTY;
	if (!chunk->summed || (ram_none(chunk->ram) && !extent_holds(device, chunk)))
		return busy(chunk) ? LEAVE_BUSY_NEW : LEAVE_NEW;
	return busy(chunk) ? LEAVE_BUSY : LEAVE_CLEAN;
}

/* Nor, meanwhile, what is used behind a wait that the program itself has to end. */
static enum predict_leave may_leave_at_once(void *arg, uint32_t index)
{
	const struct device *device = arg;

	return busy(&device->chunks[index]) ? LEAVE_NOT : may_leave(arg, index);
}

/* Not only up to the first that is not over: its stream may wait for the program. */
static void see_all_that_is_over(struct device *device)
{
	for (uint32_t i = 0; i < device->recent_count; i++) {
		struct ticket *ticket =
			ticket_get(device->recent[(device->recent_first + i) % RECENT_MOST]);

		if (!ticket_done(ticket)) {
			let_go(device);
			ticket_poll(ticket);
			take_back(device);
		}
		ticket_put(ticket);
	}
}

bool vram_awaiting(struct device *device)
{
	bool any = false;

	for (int i = 0; i < AWAITS_MOST; i++) {
		struct ticket *ticket = ticket_get(device->awaits[i]);
		bool over;

		let_go(device);
		over = ticket_poll(ticket);
		take_back(device);
		any = any || !over;
		if (over && device->awaits[i] == ticket) {
			ticket_put(ticket);
			device->awaits[i] = NULL;
		}
		ticket_put(ticket);
	}
	return any;
}

void vram_look_again(struct device *device)
{
	let_go(device);
	nanosleep(&(struct timespec){ .tv_nsec = AGAIN_NS }, NULL);
	take_back(device);
}

/* The n-th copy to VRAM from the last one on, which is 1. */
static struct ticket *latest(const struct device *device, uint32_t n)
{
	return device->rising[(device->risen - n) % RISING_MOST];
}

bool vram_bus_has(struct device *device, uint32_t copies)
{
	struct ticket *ticket = ticket_get(latest(device, copies));
	bool has;

	let_go(device);
	has = !ticket_poll(ticket);
	ticket_put(ticket);
	take_back(device);
	return has;
}

bool vram_bus_runs(const struct device *device)
{
	return !ticket_done(latest(device, 1));
}

static uint32_t choose_victim(struct device *device, enum predict_haste haste)
{
	return predict_victim(&device->predictor, PLACE_VRAM, haste, may_leave, device);
}

/* The chunk to leave VRAM; PREDICT_NONE: none may. ahead: nobody waits for the place. */
static uint32_t vram_victim(struct device *device, bool ahead)
{
	uint32_t victim, failed;

	/* What was launched before anybody looked left no tickets. */
	if (ahead && !device->quiet)
		return PREDICT_NONE;
	vram_see_what_is_over(device);
	if (ahead) {
		victim = choose_victim(device, HASTE_AHEAD);
		/* While T3 is waited for, the bus is idle whatever is brought in ahead. */
		if (victim != PREDICT_NONE || device->fetches || vram_bus_has(device, 2))
			return victim;
		return choose_victim(device, HASTE_IDLE);
	}
	/*
	 * Which of the busy ones are used behind the wait is not known, and one of those would be
	 * waited for for ever. Others are over in a moment.
	 */
	while (vram_awaiting(device) && !device->stopped) {
		see_all_that_is_over(device);
		victim = predict_victim(&device->predictor, PLACE_VRAM, HASTE_HURRY,
					may_leave_at_once, device);
		if (victim != PREDICT_NONE)
			return victim;
		/* All is held by who waits: nothing that ends would change that. And who can use
		 * RAM need not wait. */
		if (device->wanted && device->wanted->exceeds && !device->wanted->pressed)
			return PREDICT_NONE;
		failed = device->predictor.failed;
		victim = choose_victim(device, HASTE_HURRY);
		device->predictor.failed = failed; /* it was only asked */
		if (victim == PREDICT_NONE)
			return PREDICT_NONE;
		vram_look_again(device);
	}
	if (vram_bus_has(device, 2)) {
		struct ticket *last_but_one;

		victim = choose_victim(device, HASTE_PATIENT);
		if (victim == PREDICT_NONE || !predict_busy(may_leave(device, victim)))
			return victim;
		/* Waiting is fine as long as the bus need not. */
		last_but_one = ticket_get(latest(device, 2));
		let_go(device);
		ticket_wait(last_but_one);
		ticket_put(last_but_one);
		take_back(device);
		vram_see_what_is_over(device);
	}
	return choose_victim(device, HASTE_HURRY);
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
	struct span_of_time time = { NULL, NULL };
	struct ticket *arrival;
	uint64_t traced;
	CUresult result;
	uint32_t slot;

	while ((slot = free_slot(device)) == NO_SLOT) {
		uint32_t victim;

		if (device->maps)
			return !device->stopped && in_place_begin(device, index);
		/* Only if the driver had less VRAM than was promised: allocations see to it
		 * otherwise. */
		if (!device->paging) {
			let_go(device);
			residency_begin_paging(device);
			take_back(device);
		}
		victim = device->stopped ? PREDICT_NONE : vram_victim(device, ahead);
		/* What a table may lead to must be there; what is named can be in RAM as well. */
		if (victim != PREDICT_NONE && device->wanted && !device->wanted->pressed &&
		    (device->wanted->exceeds || chunk->guess.open) &&
		    may_leave(device, victim) == LEAVE_GRACE)
			return false;
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
	traced = trace_begin();
	let_go(device);

	/* A fresh chunk has nothing to copy, but its slot's last tenant may still be leaving. */
	arrival = fresh ? ticket_get(mover->vram[slot].busy)
			: mover_copy_up(mover, chunk->ram, slot, traced ? &time : NULL);
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
		mover_use_ram(mover, chunk->ram, ticket_get(arrival));
		device->copies++;
		if (!chunk->summed)
			lower_forget_copy(device, index);
		device_count(device, COUNTER_H2D_BYTES, device->chunk);
		device_count(device, COUNTER_PREFETCHED, ahead);
		trace_copy(device, &time, true, index, ahead);
		ticket_put(device->rising[device->risen % RISING_MOST]);
		device->rising[device->risen++ % RISING_MOST] = ticket_get(arrival);
	}
	predict_moved(&device->predictor, index, PLACE_VRAM, ahead);
	chunk->arrival = arrival;
	chunk->slot = slot;
	chunk->home = HOME_T1;
	trace_host(device, traced, ahead ? "bring in ahead" : "bring in", index,
		   fresh ? "new" : "copied");
	pager_set_state(device, index, RESIDENT);
	return true;
}

bool vram_held_for_a_moment(const struct device *device, const struct hold *but)
{
	for (uint32_t i = 0; i < device->mover.slots; i++) {
		uint32_t c = device->mover.vram[i].chunk;

		if (c != NO_SLOT && device->chunks[c].holds && !device->chunks[c].fixed &&
		    !(but && hold_has(but, c)))
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
		if (victim == PREDICT_NONE && vram_held_for_a_moment(device, NULL)) {
			pthread_cond_wait(&device->work, &device->lock);
		} else if (victim == PREDICT_NONE || !sink(device, victim) ||
			   (device->maps && device->chunks[victim].state == ABSENT &&
			    device->chunks[victim].home == HOME_T2 &&
			    !in_place_begin(device, victim))) {
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
