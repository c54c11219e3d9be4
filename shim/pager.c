// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The one thread of a device that moves chunks. It serves, in this order: the
 * end of an allocation, the launch that waits, recalled arenas, slots to be
 * given up, and last the chunks that will be wanted next; but T3 may read one of
 * those while a launch waits for others.
 */
#define _GNU_SOURCE
#include "pager.h"

#include <time.h>

#include "fault.h"
#include "in_place.h"
#include "log.h"
#include "thread.h"

/* Of VRAM, as what to divide it by: what was brought in ahead and is not used yet; and what stays
 * free for new memory when there is room for what is far ahead. */
#define UNREAD_SHARE 8
#define ROOM_SHARE 32

/* Copies to VRAM under way ahead of use: what the bus moves while nobody looks, and two at least.
 * What comes earlier than that takes the place of others for longer. */
#define BUS_BYTES ((size_t)96 << 20)

/* Reads of T3 under way ahead of use, and while RAM is full: then they take places of copies. */
#define FETCHES_AHEAD 8
#define FETCHES_FULL 4
/* Reads under way while a launch waits for one: with less the disk is idle from one to the next. */
#define FETCHES_LEAST 2

void pager_set_state(struct device *device, uint32_t index, enum chunk_state state)
{
	device->chunks[index].state = (uint8_t)state;
	residency_show(device, index);
	/* Every change of what a slot holds has a change of state next to it. */
	device_gauge_most(device, COUNTER_VRAM_SLOTS_USED, COUNTER_VRAM_SLOTS_MOST,
			  device->slots_used);
	lower_show_ram(device);
	if (state == ABSENT || state == RESIDENT || state == MAPPED)
		pthread_cond_broadcast(&device->changed);
}

void pager_stop(struct device *device, const char *what, CUresult error)
{
	if (!device->stopped && error != CUDA_ERROR_DEINITIALIZED)
		log_warn("%s failed: %s; paging on this device has stopped", what,
			 driver_error(error));
	if (error == CUDA_ERROR_ILLEGAL_ADDRESS)
		fault_say(device);
	if (!device->stopped)
		device->stop_error = error;
	device->stopped = true;
	pthread_cond_broadcast(&device->changed);
}

static bool may_fetch(void *arg, uint32_t index)
{
	const struct chunk *chunk = &((struct device *)arg)->chunks[index];

	return chunk->state == ABSENT && chunk->home == HOME_T3;
}

/* Ask T3 for what will be wanted, farther ahead than VRAM does. */
static bool fetch_ahead(struct device *device)
{
	bool full = lower_ram_available(device) <= lower_ram_slots(device) / 4;
	struct ram_place place;
	uint32_t index;

	/* Room must be left for what leaves VRAM, or what was fetched would be the first to go
	 * back. */
	if (device->fetches >= (full ? FETCHES_FULL : FETCHES_AHEAD))
		return false;
	index = predict_next(&device->predictor, PLACE_RAM, REACH_NEAR, may_fetch, device);
	if (index == PREDICT_NONE)
		return false;
	place = lower_take_ram(device);
	if (ram_none(place))
		return false;
	lower_start_fetch(device, index, place);
	return true;
}

/* Ask T3 for what the launch wants of it, as far as RAM goes without making room. */
static uint32_t fetch_wanted(struct device *device)
{
	struct hold *hold = device->wanted;
	uint32_t most = lower_ram_slots(device) / 2, first = PREDICT_NONE;

	/* Half of RAM at most, so that chunks can leave VRAM for those that arrive. */
	for (uint32_t i = 0; device->wanted == hold && i < hold->count; i++) {
		uint32_t index = hold->chunks[i];
		struct chunk *chunk = &device->chunks[index];
		struct ram_place place;

		if (chunk->state != ABSENT || chunk->home != HOME_T3)
			continue;
		place = device->fetches < most ? lower_take_ram(device) : NO_RAM;
		if (!ram_none(place))
			lower_start_fetch(device, index, place);
		else if (first == PREDICT_NONE)
			first = index;
	}
	return first;
}

/* Is anything used in place that another launch or copy holds? */
static bool others_in_place(const struct device *device, const struct hold *hold)
{
	for (uint32_t i = 0; device->mapped && i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];

		for (uint32_t c = a->first; c < a->first + a->chunks; c++)
			if (device->chunks[c].state == MAPPED && device->chunks[c].holds &&
			    !hold_has(hold, c))
				return true;
	}
	return false;
}

static void fail_wanted(struct device *device, CUresult error)
{
	device->failure = error;
	pthread_cond_broadcast(&device->changed);
}

/* What was used in place is wanted in VRAM. */
static void bring_back(struct device *device, uint32_t index)
{
	struct hold *hold = device->wanted;
	bool awaiting = vram_awaiting(device);

	/* That let go of the lock: only now is it known who else holds it. */
	if (device->wanted != hold)
		return;
	if (device->chunks[index].holds > 1) { /* what it is in place for is just being made */
		pthread_cond_wait(&device->work, &device->lock);
	} else if (!awaiting) {
		sparse_wanted(&device->sparse, index);
		in_place_end(device, index);
	} else if (hold->where == HOLD_EXCESS) {
		hold->ram = true; /* the device cannot be waited for */
		pthread_cond_broadcast(&device->changed);
	} else {
		vram_look_again(device);
	}
}

/*
 * It gets no room in VRAM. A kernel may use RAM, also if that was not expected, as VRAM has become
 * less since, or nothing may leave it now; then also what a table may lead to has to go.
 */
static void press(struct device *device, struct hold *hold)
{
	if (hold->where != HOLD_EXCESS || hold->pressed) {
		fail_wanted(device, CUDA_ERROR_OUT_OF_MEMORY);
	} else if (hold->exceeds) {
		hold->pressed = true;
	} else {
		hold->exceeds = hold->ram = true;
		pthread_cond_broadcast(&device->changed);
	}
}

/*
 * RAM for what has to be used in place, before others leave VRAM for the rest. False: there is
 * none, or it waits no more.
 */
static bool has_ram_for_excess(struct device *device, const struct hold *hold)
{
	while (hold->exceeds && hold->count > device->slots_allowed &&
	       hold->count - device->slots_allowed > residency_in_place(device))
		if (!lower_more_ram(device) || device->wanted != hold)
			return false;
	return true;
}

/* One step for the launch that waits. */
static void serve_wanted(struct device *device)
{
	struct hold *hold = device->wanted;
	uint32_t unfetched;
	bool moving;

	if (!has_ram_for_excess(device, hold)) {
		if (device->wanted == hold)
			fail_wanted(device, CUDA_ERROR_OUT_OF_MEMORY);
		return;
	}
	unfetched = fetch_wanted(device);
	hold = device->wanted;
	moving = device->fetches || device->spills || device->departures;

	/* What is to stay in VRAM first, and what may not be used at all last: the rest can be used
	 * in RAM. */
	for (uint32_t i = 0; hold && i < (hold->guesses ? 3 : 2) * hold->count; i++) {
		uint32_t at = i % hold->count, index = hold->chunks[at];
		struct chunk *chunk = &device->chunks[index];
		bool guessed = hold_guesses(hold, at);

		if (i / hold->count != (chunk->fixed ? 0 : guessed ? 2 : 1))
			continue;
		if (chunk->state == MAPPED && !hold_usable(device, hold, at)) {
			bring_back(device, index);
			return;
		}
		if (chunk->state != ABSENT)
			continue;
		if (chunk->home == HOME_LOST) {
			fail_wanted(device, CUDA_ERROR_UNKNOWN);
			return;
		}
		if (guessed)
			guess_made(&chunk->guess, device->state->counters[COUNTER_EVICTIONS]);
		/* No other has to leave its place for that. */
		if ((hold_reads_little(hold, index) || (guessed && guess_is_vain(&chunk->guess))) &&
		    chunk->home == HOME_T2 && !chunk->fixed &&
		    device->mapped < residency_in_place(device) && in_place_begin(device, index))
			return;
		if (chunk->home == HOME_EMPTY || chunk->home == HOME_T2) {
			if (vram_rise(device, index, false))
				return;
			if (device->wanted != hold || (guessed && in_place_begin(device, index)))
				return;
			if (vram_held_for_a_moment(device, hold) ||
			    (hold->exceeds && others_in_place(device, hold)))
				pthread_cond_wait(&device->work, &device->lock);
			else if (hold->exceeds && in_place_begin(device, index))
				;
			else if (device->wanted == hold)
				press(device, hold);
			return;
		}
	}
	if (unfetched != PREDICT_NONE && !device->fetches) {
		struct ram_place place = lower_make_ram(device);

		if (ram_none(place))
			fail_wanted(device, CUDA_ERROR_OUT_OF_MEMORY);
		else if (device->chunks[unfetched].state == ABSENT &&
			 device->chunks[unfetched].home == HOME_T3)
			lower_start_fetch(device, unfetched, place);
		else
			mover_put_ram(&device->mover, place);
	} else if (moving && !(device->recall_count && lower_serve_recalls(device))) {
		/* What comes after this launch, or the disk had nothing to do from the end of its
		 * last read on. */
		if (unfetched == PREDICT_NONE && !device->doubt &&
		    device->fetches < FETCHES_LEAST && fetch_ahead(device))
			return;
		pthread_cond_wait(&device->changed, &device->lock);
	}
}

static bool wants_more(const struct device *device)
{
	const struct hold *hold = device->wanted;

	if (!hold || device->failure)
		return false;
	for (uint32_t i = 0; i < hold->count; i++)
		if (!hold_usable(device, hold, i))
			return true;
	return false;
}

/* Take an allocation, or a part of one, apart. The caller has waited for the device. */
static void end_allocation(struct device *device)
{
	const struct ending *ending = device->ending;
	struct allocation *a = ending->allocation;

	for (uint32_t c = ending->first; c < ending->first + ending->chunks; c++) {
		struct chunk *chunk = &device->chunks[c];

		while (chunk->state == FETCHING || chunk->state == SPILLING)
			pthread_cond_wait(&device->changed, &device->lock);
		if (chunk->state == MAPPED)
			in_place_free(device, c);
		if (chunk->slot != NO_SLOT) {
			let_go(device);
			mover_unmap(&device->mover, chunk->address);
			take_back(device);
			device->mover.vram[chunk->slot].chunk = NO_SLOT;
			ticket_put(device->mover.vram[chunk->slot].busy);
			/* What still arrives must not be handed to the next tenant. */
			device->mover.vram[chunk->slot].busy = chunk->arrival;
			chunk->arrival = NULL;
			device->slots_used--;
		}
		if (!ram_none(chunk->ram)) {
			device->copies -= chunk->slot != NO_SLOT;
			mover_put_ram(&device->mover, chunk->ram);
		}
		for (int i = 0; i < CHUNK_USES; i++)
			ticket_put(chunk->uses[i]);
		device->fixed -= chunk->fixed;
		residency_unpin(device, chunk);
		/* T3's copy goes with the whole allocation; of a part the caller sees to it. */
		*chunk = (struct chunk){
			.slot = NO_SLOT,
			.ram = NO_RAM,
			.extent = !ending->whole && (chunk->extent || chunk->home == HOME_LOST),
		};
		predict_forget(&device->predictor, c);
		__atomic_store_n(&device->state_map[c], STATE_FREE, __ATOMIC_RELAXED);
	}
	grace_forget(device, ending->first, ending->chunks);
	sparse_forget(&device->sparse, ending->first, ending->chunks);
	if (ending->whole) {
		let_go(device);
		mover_unreserve(&device->mover, a->base, a->chunks);
		take_back(device);
		alloc_map_remove(&device->map, a);
	}
	device_gauge(device, COUNTER_VRAM_SLOTS_USED, device->slots_used);
	lower_show_ram(device);
	device->ending = NULL;
	pthread_cond_broadcast(&device->changed);
}

void pager_on_recall(void *arg, uint64_t id, uint64_t arena)
{
	struct device *device = arg;

	pthread_mutex_lock(&device->lock);
	/* No more than there can be arenas; what is beyond goes unanswered. */
	if (device->recall_count < MAX_ARENAS)
		device->recalls[device->recall_count++] = (struct recall){ id, arena };
	pthread_cond_signal(&device->work);
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
}

static bool may_rise(void *arg, uint32_t index)
{
	const struct chunk *chunk = &((struct device *)arg)->chunks[index];

	return chunk->state == ABSENT && (chunk->home == HOME_T2 || chunk->home == HOME_T3);
}

static uint32_t copies_ahead(const struct device *device)
{
	size_t copies = BUS_BYTES / device->chunk;

	return copies < 2 ? 2 : copies < RISING_MOST ? (uint32_t)copies : RISING_MOST;
}

/* One step ahead; false: nothing to do, or not yet. */
static bool look_ahead(struct device *device)
{
	uint32_t available = device->slots_allowed > device->slots_used
				     ? device->slots_allowed - device->slots_used
				     : 0;
	bool room = available > device->slots_allowed / ROOM_SHARE + 1;
	uint32_t index;

	if (fetch_ahead(device))
		return true;
	if (!room && (device->predictor.unread >= device->slots_allowed / UNREAD_SHARE ||
		      vram_bus_has(device, copies_ahead(device))))
		return false;
	index = predict_next(&device->predictor, PLACE_VRAM, room ? REACH_ROOM : REACH_NEAR,
			     may_rise, device);
	if (index == PREDICT_NONE && !room && !device->fetches && !vram_bus_has(device, 2))
		index = predict_next(&device->predictor, PLACE_VRAM, REACH_IDLE, may_rise, device);
	return index != PREDICT_NONE && device->chunks[index].home == HOME_T2 &&
	       vram_rise(device, index, true);
}

/* Launches that were timed, as far as they are over. */
static void see_what_took_long(struct device *device)
{
	struct sparse *sparse = &device->sparse;

	for (uint32_t i = sparse->sampled; i-- > 0;) {
		/* Only this thread takes from them, and others add at the end. */
		const struct sample sample = sparse->samples[i];
		float ms;
		CUresult result;

		let_go(device);
		result = driver.cuEventElapsedTime(&ms, sample.time.before, sample.time.after);
		if (result != CUDA_ERROR_NOT_READY) {
			timing_put(&device->mover.timing, sample.time.before);
			timing_put(&device->mover.timing, sample.time.after);
		}
		take_back(device);
		if (result == CUDA_ERROR_NOT_READY)
			continue;
		if (!result)
			sparse_took(sparse, &sample, ms / 1e3);
		sparse->samples[i] = sparse->samples[--sparse->sampled];
	}
}

/* Looks ahead once; what is used meanwhile asks for more by setting prefetch again. */
static bool look_further(struct device *device)
{
	bool moved;

	device->prefetch = false;
	vram_see_what_is_over(device);
	if (device->maps)
		return false; /* all is where it stays */
	see_what_took_long(device);
	if (device->doubt)
		return false; /* or what is only ahead would wait for a daemon, and launches for it
			       */
	moved = look_ahead(device);
	return moved || device->prefetch;
}

/* Launches and copies end without telling: while some are under way, what they used may be free by
 * now, or the bus. */
static void wait_for_work(struct device *device)
{
	struct timespec until;

	if ((!device->recent_count && !vram_bus_runs(device)) || !atomic_load(&device->paging)) {
		pthread_cond_wait(&device->work, &device->lock);
		return;
	}
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += AGAIN_NS;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	device->prefetch |= pthread_cond_timedwait(&device->work, &device->lock, &until) != 0;
}

void pager_turn(struct device *device)
{
	if (device->ending)
		end_allocation(device);
	else if (device->stopped)
		pthread_cond_wait(&device->work, &device->lock);
	else if (wants_more(device))
		serve_wanted(device);
	else if (device->recall_count && lower_serve_recalls(device))
		; /* a step at a time: a launch may have come */
	else if (device->mover.slots_existing > device->slots_allowed)
		vram_give_up_slot(device);
	else if (device->prefetch)
		/* Back to the top in any case: while it let go of the lock, a launch may
		 * have come. */
		device->prefetch = look_further(device);
	else
		wait_for_work(device);
}

CUresult pager_thread_begins(struct device *device, const char *name)
{
	/* Captures of other threads must not forbid what this one does. */
	int relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
	CUresult result;

	pthread_setname_np(pthread_self(), name);
	result = driver.cuCtxSetCurrent(device->context);
	return result ? result : driver.cuThreadExchangeStreamCaptureMode(&relaxed);
}

static void *pager_thread(void *arg)
{
	struct device *device = arg;
	CUresult result = pager_thread_begins(device, "greenboost-page");

	take_back(device);
	if (result)
		pager_stop(device, "starting the pager", result);
	for (;;)
		pager_turn(device);
	return NULL;
}

int pager_start(struct device *device)
{
	int error = thread_start(&device->closer, lower_closer, device);

	if (!error)
		error = thread_start(&device->opener, lower_opener, device);
	return error ? error : thread_start(&device->pager, pager_thread, device);
}
