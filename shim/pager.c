// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The one thread of a device that moves chunks. It serves, in this order: the
 * launch that waits, the end of an allocation, a recalled arena, slots to be
 * given up, and last the chunks that will be wanted next.
 *
 * Every function here is called with the device's lock held and returns with it
 * held; where it calls the driver it lets go of the lock, and what it read
 * before is stale after. Chunks in the states RISING and SINKING are nobody
 * else's, and FETCHING and SPILLING ones wait for the client's thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "residency.h"

/* How often the daemon is asked for another arena once it had none to give: every so many spills.
 */
#define SPILLS_BETWEEN_ASKING 64

/* Prefetched and not yet used at most: 1/8 of VRAM, so that looking ahead cannot push out the
 * present. */
#define PREFETCH_SHARE 8
#define PREFETCH_MOST 16

/* Spilled at a time: enough to keep the disk busy, little of RAM. */
#define SPILL_SHARE 8
#define SPILL_MOST 4

/* How many chunks to ask about before taking one that the device still uses. */
#define VICTIM_TRIES 4

static void let_go(struct device *device)
{
	pthread_mutex_unlock(&device->lock);
}

static void take_back(struct device *device)
{
	pthread_mutex_lock(&device->lock);
}

static void set_state(struct device *device, uint32_t index, enum chunk_state state)
{
	device->chunks[index].state = (uint8_t)state;
	residency_show(device, index);
	if (state == ABSENT || state == RESIDENT)
		pthread_cond_broadcast(&device->changed);
}

/* The driver failed where it must not: nothing can be promised any more. */
static void stop(struct device *device, const char *what, CUresult error)
{
	if (!device->stopped && error != CUDA_ERROR_DEINITIALIZED)
		log_warn("%s failed: %s; paging on this device has stopped", what,
			 driver_error(error));
	if (!device->stopped)
		device->stop_error = error;
	device->stopped = true;
	pthread_cond_broadcast(&device->changed);
}

/* ---- to and from T3, by the daemon ---- */

struct transfer {
	struct device *device;
	uint32_t chunk;
};

static void transfer_done(struct transfer *transfer)
{
	set_state(transfer->device, transfer->chunk, ABSENT);
	pthread_cond_signal(&transfer->device->work);
	free(transfer);
}

static void fetch_done(void *arg, const struct reply *reply)
{
	struct transfer *transfer = arg;
	struct device *device = transfer->device;
	struct chunk *chunk = &device->chunks[transfer->chunk];

	pthread_mutex_lock(&device->lock);
	device->fetches--;
	device->prefetch = true; /* if it was fetched ahead, it goes on to VRAM */
	if (reply->error) {
		log_warn("bytes 0x%llx to 0x%llx are lost: %s", chunk->address,
			 chunk->address + device->chunk, reply->message);
		mover_put_ram(&device->mover, chunk->ram, NULL);
		chunk->ram = NO_RAM;
		chunk->home = HOME_LOST;
	} else {
		chunk->home = HOME_T2;
		device_count(device, COUNTER_FETCH_BYTES, device->chunk);
	}
	transfer_done(transfer);
	pthread_mutex_unlock(&device->lock);
}

static void spill_done(void *arg, const struct reply *reply)
{
	struct transfer *transfer = arg;
	struct device *device = transfer->device;
	struct chunk *chunk = &device->chunks[transfer->chunk];

	pthread_mutex_lock(&device->lock);
	device->spills--;
	if (!reply->error) {
		mover_put_ram(&device->mover, chunk->ram, NULL);
		chunk->ram = NO_RAM;
		chunk->home = HOME_T3;
		device_count(device, COUNTER_SPILL_BYTES, device->chunk);
	} else {
		/* It stays where it is. Whoever waits for room will find out that there is none. */
		log_warn("a chunk could not be written to NVMe: %s", reply->message);
		device->spill_error = reply->error;
	}
	transfer_done(transfer);
	pthread_mutex_unlock(&device->lock);
}

static void post_transfer(struct device *device, const char *op, uint32_t index, client_done done)
{
	struct chunk *chunk = &device->chunks[index];
	struct ram_place ram = chunk->ram;
	struct ticket *busy = ticket_get(mover_ram_slot(&device->mover, ram)->busy);
	struct transfer *transfer = malloc(sizeof(*transfer));
	struct message request;
	CUresult result;

	let_go(device);
	/* The disk knows nothing of streams: copies of the slot must be over. */
	result = ticket_wait(busy);
	ticket_put(busy);
	if (result || !transfer) {
		take_back(device);
		stop(device, "waiting for a copy", result ? result : CUDA_ERROR_OUT_OF_MEMORY);
		free(transfer);
		return;
	}
	*transfer = (struct transfer){ device, index };
	client_request(&request, op);
	message_uint(&request, "chunk", index);
	message_uint(&request, "arena", device->mover.arenas[ram.arena].id);
	message_uint(&request, "slot", ram.slot);
	client_post(&device->client, &request, done, transfer);
	take_back(device);
}

/*
 * Of the chunks at home in T2 the one needed last; PREDICT_NONE if there is
 * none. One that a launch waits for goes only before nothing can move at all:
 * with every RAM slot full of what is wanted, no chunk could leave VRAM for it.
 */
static uint32_t spill_victim(const struct device *device)
{
	uint32_t best = PREDICT_NONE;
	uint64_t latest = 0;

	for (uint32_t i = 0; i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];

		for (uint32_t c = a->first; c < a->first + a->chunks; c++) {
			const struct chunk *chunk = &device->chunks[c];
			uint64_t next;

			if (chunk->state != ABSENT || chunk->home != HOME_T2)
				continue;
			next = chunk->holds
				       ? 0
				       : predict_next_use(&device->predictor, &device->history[c]);
			if (best == PREDICT_NONE || next > latest) {
				best = c;
				latest = next;
			}
		}
	}
	return best;
}

static void arena_done(void *arg, const struct reply *reply)
{
	struct device *device = arg;

	pthread_mutex_lock(&device->lock);
	device->arena_answer = *reply;
	device->arena_answered = true;
	pthread_cond_signal(&device->work);
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
}

static void show_ram(struct device *device)
{
	uint32_t slots, available;

	mover_count_ram(&device->mover, &slots, &available);
	device_gauge(device, COUNTER_ARENA_SLOTS, slots);
	device_gauge(device, COUNTER_ARENA_SLOTS_USED, slots - available);
}

/* Ask the daemon for an arena and wait. Returns false if T2 has none to give. */
static bool get_arena(struct device *device)
{
	struct message request;
	struct reply reply;
	int index = -1;

	if (device->arena_refusals) {
		device->arena_refusals--;
		return false;
	}
	let_go(device);
	client_request(&request, "arena");
	client_post(&device->client, &request, arena_done, device);
	take_back(device);
	while (!device->arena_answered)
		pthread_cond_wait(&device->changed, &device->lock);
	device->arena_answered = false;
	reply = device->arena_answer;
	if (!reply.error && reply.fd >= 0) {
		/* Others read the table of arenas in the lock; only this thread adds to it. */
		let_go(device);
		index = mover_add_arena(&device->mover, reply.arena, reply.fd, device->terms.arena);
		take_back(device);
	}
	if (index < 0)
		device->arena_refusals = SPILLS_BETWEEN_ASKING;
	show_ram(device);
	return index >= 0;
}

static void start_spill(struct device *device, uint32_t index)
{
	device->spills++;
	set_state(device, index, SPILLING);
	post_transfer(device, "spill", index, spill_done);
}

static void start_fetch(struct device *device, uint32_t index, struct ram_place place)
{
	device->chunks[index].ram = place;
	device->fetches++;
	set_state(device, index, FETCHING);
	post_transfer(device, "fetch", index, fetch_done);
}

static uint32_t ram_slots(struct device *device)
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

/*
 * A free RAM slot: from the arenas there are, from a new one, or by spilling.
 * NO_RAM: no tier has room.
 */
static struct ram_place make_ram(struct device *device)
{
	device->spill_error = 0;
	while (!device->stopped) {
		struct ram_place place = mover_take_ram(&device->mover);
		uint32_t ahead = ram_slots(device) / SPILL_SHARE;
		uint32_t victim = PREDICT_NONE;

		if (!ram_none(place))
			return place;
		if (!device->spills && get_arena(device))
			continue;
		if (device->spill_error)
			return NO_RAM;
		/* Some more than the one needed, so that the next need not wait. */
		ahead = ahead < 1 ? 1 : ahead > SPILL_MOST ? SPILL_MOST : ahead;
		while (device->spills < ahead && (victim = spill_victim(device)) != PREDICT_NONE)
			start_spill(device, victim);
		/* A spill may be over already: starting one lets go of the lock. */
		if (ram_free(device))
			continue;
		if (!device->spills) {
			log_warn("no tier has room for another chunk");
			return NO_RAM;
		}
		pthread_cond_wait(&device->changed, &device->lock);
	}
	return NO_RAM;
}

/* ---- between VRAM and RAM ---- */

/*
 * Launches made before paging began left no tickets; once, everything the
 * device was given by then is waited for.
 */
static CUresult wait_for_the_unseen(struct device *device)
{
	CUresult result = CUDA_SUCCESS;

	if (!device->quiet)
		result = driver.cuCtxSynchronize();
	device->quiet = result == CUDA_SUCCESS;
	return result;
}

/* Write the chunk back to RAM and take it off the application's address. False: no room below. */
static bool sink(struct device *device, uint32_t index)
{
	struct chunk *chunk = &device->chunks[index];
	struct vram_slot *slot = &device->mover.vram[chunk->slot];
	struct ticket *uses[CHUNK_USES], *arrival = chunk->arrival, *saved = NULL;
	struct ram_place place;
	bool crowded = chunk->crowded;
	CUresult result;

	set_state(device, index, SINKING);
	place = make_ram(device);
	if (ram_none(place)) {
		set_state(device, index, RESIDENT);
		return false;
	}
	for (int i = 0; i < CHUNK_USES; i++) {
		uses[i] = chunk->uses[i];
		chunk->uses[i] = NULL;
	}
	chunk->arrival = NULL;
	chunk->crowded = false;
	let_go(device);

	result = wait_for_the_unseen(device);
	if (crowded && !result)
		result = driver.cuCtxSynchronize();
	for (int i = 0; i < CHUNK_USES; i++) {
		if (!result)
			result = ticket_wait(uses[i]);
		ticket_put(uses[i]);
	}
	if (!result)
		result = ticket_wait_on(arrival, device->mover.down, 0);
	ticket_put(arrival);
	if (!result) {
		saved = mover_copy_down(&device->mover, chunk->slot, place);
		result = saved ? mover_unmap(&device->mover, chunk->address) : CUDA_ERROR_UNKNOWN;
	}

	take_back(device);
	if (result) {
		stop(device, "moving a chunk out of VRAM", result);
		return false;
	}
	ticket_put(mover_ram_slot(&device->mover, place)->busy);
	mover_ram_slot(&device->mover, place)->busy = ticket_get(saved);
	ticket_put(slot->busy);
	slot->busy = saved;
	slot->chunk = NO_SLOT;
	device->slots_used--;
	chunk->slot = NO_SLOT;
	chunk->ram = place;
	chunk->home = HOME_T2;
	device_count(device, COUNTER_D2H_BYTES, device->chunk);
	device_count(device, COUNTER_EVICTIONS, 1);
	device_gauge(device, COUNTER_VRAM_SLOTS_USED, device->slots_used);
	set_state(device, index, ABSENT);
	return true;
}

/* Is the device done with the chunk? Asks the driver. */
static bool uses_over(struct device *device, uint32_t index)
{
	struct ticket *uses[CHUNK_USES];
	bool over = !device->chunks[index].crowded && device->quiet;

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

/* Of the resident chunks the one needed last PREDICT_NONE if none may leave. */
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
		uint32_t i = 0;
		CUresult result;

		while (mover->vram[i].exists)
			i++;
		let_go(device);
		result = mover_create_slot(mover, i);
		take_back(device);
		if (result == CUDA_SUCCESS)
			return i;
		/* Somebody else's memory: make do with what there is. */
		device->slots_allowed = mover->slots_existing;
		device_gauge(device, COUNTER_VRAM_SLOTS, device->slots_allowed);
	}
	return NO_SLOT;
}

/* Bring in an absent chunk whose bytes are in RAM, or that has none yet. False: not possible now.
 */
static bool rise(struct device *device, uint32_t index, bool ahead)
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
	set_state(device, index, RISING);
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
		stop(device, "moving a chunk into VRAM", result);
		return false;
	}
	ticket_put(mover->vram[slot].busy);
	mover->vram[slot].busy = NULL;
	if (!fresh) {
		mover_put_ram(mover, chunk->ram, ticket_get(arrival));
		chunk->ram = NO_RAM;
		predict_arrival(&device->history[index]);
		device_count(device, COUNTER_H2D_BYTES, device->chunk);
		device_count(device, COUNTER_PREFETCHED, ahead);
	}
	chunk->arrival = arrival;
	chunk->slot = slot;
	chunk->home = HOME_T1;
	device_gauge(device, COUNTER_VRAM_SLOTS_USED, device->slots_used);
	set_state(device, index, RESIDENT);
	return true;
}

/* ---- what the thread does ---- */

/* Ask T3 for what the launch wants of it, as far as RAM goes without making room. */
static uint32_t fetch_wanted(struct device *device)
{
	struct hold *hold = device->wanted;
	uint32_t most = ram_slots(device) / 2, first = PREDICT_NONE;

	/* Half of RAM at most, so that chunks can leave VRAM for those that arrive. */
	for (uint32_t i = 0; device->wanted == hold && i < hold->count; i++) {
		uint32_t index = hold->chunks[i];
		struct chunk *chunk = &device->chunks[index];
		struct ram_place place;

		if (chunk->state != ABSENT || chunk->home != HOME_T3)
			continue;
		place = device->fetches < most ? mover_take_ram(&device->mover) : NO_RAM;
		if (!ram_none(place))
			start_fetch(device, index, place);
		else if (first == PREDICT_NONE)
			first = index;
	}
	return first;
}

static void fail_wanted(struct device *device, CUresult error)
{
	device->failure = error;
	pthread_cond_broadcast(&device->changed);
}

/* One step for the launch that waits. */
static void serve_wanted(struct device *device)
{
	uint32_t unfetched = fetch_wanted(device);
	struct hold *hold = device->wanted;
	bool moving = device->fetches || device->spills;

	for (uint32_t i = 0; hold && i < hold->count; i++) {
		uint32_t index = hold->chunks[i];
		struct chunk *chunk = &device->chunks[index];

		if (chunk->state != ABSENT)
			continue;
		if (chunk->home == HOME_LOST) {
			fail_wanted(device, CUDA_ERROR_UNKNOWN);
			return;
		}
		if (chunk->home == HOME_EMPTY || chunk->home == HOME_T2) {
			if (!rise(device, index, false))
				fail_wanted(device, CUDA_ERROR_OUT_OF_MEMORY);
			return;
		}
	}
	if (unfetched != PREDICT_NONE && !device->fetches) {
		struct ram_place place = make_ram(device);

		if (ram_none(place))
			fail_wanted(device, CUDA_ERROR_OUT_OF_MEMORY);
		else if (device->chunks[unfetched].state == ABSENT &&
			 device->chunks[unfetched].home == HOME_T3)
			start_fetch(device, unfetched, place);
		else
			mover_put_ram(&device->mover, place, NULL);
	} else if (moving) {
		pthread_cond_wait(&device->changed, &device->lock);
	}
}

static bool wants_more(const struct device *device)
{
	const struct hold *hold = device->wanted;

	if (!hold || device->failure)
		return false;
	for (uint32_t i = 0; i < hold->count; i++)
		if (device->chunks[hold->chunks[i]].state != RESIDENT)
			return true;
	return false;
}

/* Take an allocation apart. The caller has waited for the device. */
static void end_allocation(struct device *device)
{
	struct allocation *a = device->ending;

	for (uint32_t c = a->first; c < a->first + a->chunks; c++) {
		struct chunk *chunk = &device->chunks[c];

		while (chunk->state == FETCHING || chunk->state == SPILLING)
			pthread_cond_wait(&device->changed, &device->lock);
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
		if (!ram_none(chunk->ram))
			mover_put_ram(&device->mover, chunk->ram, NULL);
		for (int i = 0; i < CHUNK_USES; i++)
			ticket_put(chunk->uses[i]);
		device->fixed -= chunk->fixed;
		*chunk = (struct chunk){ .slot = NO_SLOT, .ram = NO_RAM };
		predict_forget(&device->history[c]);
		__atomic_store_n(&device->state_map[c], STATE_FREE, __ATOMIC_RELAXED);
	}
	let_go(device);
	driver.cuMemAddressFree(a->base, a->chunks * device->chunk);
	take_back(device);
	alloc_map_remove(&device->map, a);
	device_gauge(device, COUNTER_VRAM_SLOTS_USED, device->slots_used);
	show_ram(device);
	device->ending = NULL;
	pthread_cond_broadcast(&device->changed);
}

/* Move a chunk out of an arena that leaves: to another one, else to T3. */
static bool leave_arena(struct device *device, uint32_t index)
{
	struct chunk *chunk = &device->chunks[index];
	struct ram_place place = mover_take_ram(&device->mover);
	struct ticket *busy;

	if (ram_none(place)) {
		device->spill_error = 0;
		start_spill(device, index);
		while (chunk->state == SPILLING && !device->stopped)
			pthread_cond_wait(&device->changed, &device->lock);
		return chunk->home == HOME_T3;
	}
	/* Nobody else may take it while its bytes are on the way. */
	set_state(device, index, SPILLING);
	busy = ticket_get(mover_ram_slot(&device->mover, chunk->ram)->busy);
	let_go(device);
	ticket_wait(busy);
	ticket_put(busy);
	ticket_wait(mover_ram_slot(&device->mover, place)->busy);
	memcpy(mover_ram(&device->mover, place), mover_ram(&device->mover, chunk->ram),
	       device->chunk);
	take_back(device);
	mover_put_ram(&device->mover, chunk->ram, NULL);
	chunk->ram = place;
	set_state(device, index, ABSENT);
	return true;
}

static int empty_arena(struct device *device, uint32_t arena)
{
	for (uint32_t i = 0; i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];

		for (uint32_t c = a->first; c < a->first + a->chunks; c++) {
			struct chunk *chunk = &device->chunks[c];

			while (chunk->state == FETCHING || chunk->state == SPILLING)
				pthread_cond_wait(&device->changed, &device->lock);
			if (chunk->ram.arena == arena && !leave_arena(device, c))
				return ENOSPC;
		}
	}
	return device->mover.arenas[arena].used ? EBUSY : 0;
}

static void serve_recall(struct device *device)
{
	struct recall recall = device->recall;
	uint32_t index = 0;
	int error = ENOENT;

	device->recall.asked = false;
	while (index < device->mover.arena_count && device->mover.arenas[index].id != recall.arena)
		index++;
	if (index < device->mover.arena_count) {
		device->mover.arenas[index].leaving = true;
		error = empty_arena(device, index);
		if (error) {
			device->mover.arenas[index].leaving = false;
		} else {
			let_go(device);
			mover_drop_arena(&device->mover, index);
			take_back(device);
		}
	}
	show_ram(device);
	let_go(device);
	client_answer_recall(&device->client, recall.id, error);
	take_back(device);
}

void pager_on_recall(void *arg, uint64_t id, uint64_t arena)
{
	struct device *device = arg;

	pthread_mutex_lock(&device->lock);
	device->recall = (struct recall){ id, arena, true };
	pthread_cond_signal(&device->work);
	pthread_mutex_unlock(&device->lock);
}

/* Direct allocations take VRAM from the slots. */
static void give_up_slot(struct device *device)
{
	struct mover *mover = &device->mover;
	uint32_t i = 0, victim;
	CUresult result;

	while (i < mover->slots && (!mover->vram[i].exists || mover->vram[i].chunk != NO_SLOT))
		i++;
	if (i == mover->slots) {
		victim = vram_victim(device, false);
		if (victim == PREDICT_NONE || !sink(device, victim)) {
			device->slots_allowed = mover->slots_existing; /* as few as can be */
			pthread_cond_broadcast(&device->changed);
		}
		return;
	}
	let_go(device);
	result = mover_destroy_slot(mover, i);
	take_back(device);
	if (result)
		stop(device, "giving VRAM back", result);
	pthread_cond_broadcast(&device->changed);
}

/* The next chunks by what followed last time, else by address, that are not in VRAM. */
static uint32_t next_absent(const struct device *device)
{
	uint32_t c = device->predictor.arrived;
	uint32_t depth = device->slots_allowed / PREFETCH_SHARE;

	if (depth > PREFETCH_MOST)
		depth = PREFETCH_MOST;
	while (c != PREDICT_NONE && depth--) {
		uint32_t next = predict_successor(&device->history[c]);
		const struct chunk *chunk;

		if (next == PREDICT_NONE)
			next = c + 1;
		if (next >= device->chunk_limit)
			break;
		chunk = &device->chunks[next];
		if (!chunk->address || (chunk->state == ABSENT && chunk->home == HOME_EMPTY))
			break; /* past the end of the allocation, or of what was written */
		if (chunk->state == ABSENT && chunk->home != HOME_LOST)
			return next;
		c = next;
	}
	return PREDICT_NONE;
}

/* One step ahead; false: nothing to do until something is used. */
static bool look_ahead(struct device *device)
{
	uint32_t index = next_absent(device);
	uint32_t slots, available;

	if (index == PREDICT_NONE)
		return false;
	if (device->chunks[index].home == HOME_T2)
		return rise(device, index, true);
	/* Room must be left for what leaves VRAM, or what was fetched would be the first to go
	 * back. */
	mover_count_ram(&device->mover, &slots, &available);
	if (available <= slots / 4)
		return false;
	start_fetch(device, index, mover_take_ram(&device->mover));
	return true;
}

/* Looks ahead once; what is used meanwhile asks for more by setting prefetch again. */
static bool look_further(struct device *device)
{
	bool moved;

	device->prefetch = false;
	moved = look_ahead(device);
	return moved || device->prefetch;
}

static void *pager_thread(void *arg)
{
	struct device *device = arg;
	int relaxed = 2; /* captures of other threads must not forbid what this one does */
	CUresult result;

	pthread_setname_np(pthread_self(), "greenboost-page");
	result = driver.cuCtxSetCurrent(device->context);
	if (!result)
		result = driver.cuThreadExchangeStreamCaptureMode(&relaxed);
	take_back(device);
	if (result)
		stop(device, "starting the pager", result);
	for (;;) {
		if (device->ending)
			end_allocation(device);
		else if (device->stopped)
			pthread_cond_wait(&device->work, &device->lock);
		else if (wants_more(device))
			serve_wanted(device);
		else if (device->recall.asked)
			serve_recall(device);
		else if (device->mover.slots_existing > device->slots_allowed)
			give_up_slot(device);
		else if (device->prefetch)
			/* Back to the top in any case: while it let go of the lock, a launch may
			 * have come. */
			device->prefetch = look_further(device);
		else
			pthread_cond_wait(&device->work, &device->lock);
	}
	return NULL;
}

int pager_start(struct device *device)
{
	return pthread_create(&device->pager, NULL, pager_thread, device);
}
