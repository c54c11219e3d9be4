// SPDX-License-Identifier: GPL-2.0-or-later
/* Below VRAM: RAM slots and the arenas they are in, and T3, which the daemon reads and writes. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "in_place.h"
#include "log.h"
#include "pager.h"
#include "trace.h"

/* How often the daemon is asked for another arena once it had none to give: in so many spills. */
#define SPILLS_BETWEEN_ASKING 64

/* Spilled at a time: enough to keep the disk busy, little of RAM. */
#define SPILL_SHARE 8
#define SPILL_MOST 4

/* The same to empty recalled arenas. */
#define DEPARTURES_MOST 8

/* Given up at a time when T3 is full: a few spills' worth. */
#define EXTENTS_AT_ONCE 16

/* Copies of what is in VRAM for which another arena is asked for: 1/2 of VRAM. */
#define COPY_SHARE 2

/* Another arena is asked for when this share of the last one is in use (to divide by). */
#define EARLY_SHARE 4

struct transfer {
	struct device *device;
	uint32_t chunk;
	uint64_t traced; /* when it began */
};

static void transfer_done(struct transfer *transfer)
{
	pager_set_state(transfer->device, transfer->chunk, ABSENT);
	pthread_cond_signal(&transfer->device->work);
	free(transfer);
}

static void fetch_done(void *arg, const struct reply *reply)
{
	struct transfer *transfer = arg;
	struct device *device = transfer->device;
	struct chunk *chunk = &device->chunks[transfer->chunk];

	pthread_mutex_lock(&device->lock);
	trace_transfer(device, transfer->traced, true, transfer->chunk, reply->error);
	device->fetches--;
	device->prefetch = true; /* if it was fetched ahead, it goes on to VRAM */
	if (reply->error) {
		log_warn("bytes 0x%llx to 0x%llx are lost: %s", chunk->address,
			 chunk->address + device->chunk, reply->message);
		mover_put_ram(&device->mover, chunk->ram);
		chunk->ram = NO_RAM;
		chunk->extent = chunk->summed = false;
		chunk->home = HOME_LOST;
	} else {
		chunk->home = HOME_T2;
		chunk->extent = reply->kept;
		predict_moved(&device->predictor, transfer->chunk, PLACE_RAM, false);
		device_count(device, COUNTER_FETCH_BYTES, device->chunk);
	}
	transfer_done(transfer);
	pthread_mutex_unlock(&device->lock);
}

/* T3 has the chunk, which goes on there alone. */
static void leave_ram(struct device *device, struct chunk *chunk)
{
	mover_put_ram(&device->mover, chunk->ram);
	chunk->ram = NO_RAM;
	chunk->home = HOME_T3;
	predict_moved(&device->predictor, (uint32_t)(chunk - device->chunks), PLACE_AWAY, false);
}

static void spilled(struct device *device, struct chunk *chunk)
{
	leave_ram(device, chunk);
	chunk->extent = true;
	device_count(device, COUNTER_SPILL_BYTES, device->chunk);
}

static void spill_done(void *arg, const struct reply *reply)
{
	struct transfer *transfer = arg;
	struct device *device = transfer->device;
	struct chunk *chunk = &device->chunks[transfer->chunk];

	pthread_mutex_lock(&device->lock);
	trace_transfer(device, transfer->traced, false, transfer->chunk, reply->error);
	device->spills--;
	if (!reply->error) {
		spilled(device, chunk);
	} else {
		/* It stays where it is. Whoever waits for room will find out that there is none. */
		if (reply->error != ENOSPC)
			log_warn("a chunk could not be written to NVMe: %s", reply->message);
		device->spill_error = reply->error;
	}
	transfer_done(transfer);
	pthread_mutex_unlock(&device->lock);
}

static bool leaving(const struct device *device, uint32_t index)
{
	struct ram_place place = device->chunks[index].ram;

	return !ram_none(place) && device->mover.arenas[place.arena].leaving;
}

/* A spill that empties a recalled arena is over. Whoever waits for room has nothing of it. */
static void departed(void *arg, const struct reply *reply)
{
	struct transfer *transfer = arg;
	struct device *device = transfer->device;
	struct chunk *chunk = &device->chunks[transfer->chunk];

	pthread_mutex_lock(&device->lock);
	trace_transfer(device, transfer->traced, false, transfer->chunk, reply->error);
	device->departures--;
	if (!reply->error)
		spilled(device, chunk);
	else if (leaving(device, transfer->chunk))
		device->mover.arenas[chunk->ram.arena].stays = reply->error;
	transfer_done(transfer);
	pthread_mutex_unlock(&device->lock);
}

/* keep: of a fetch, whether T3 should keep its copy; -1: not a fetch. */
static void post_transfer(struct device *device, const char *op, uint32_t index, int keep,
			  client_done done)
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
		pager_stop(device, "waiting for a copy",
			   result ? result : CUDA_ERROR_OUT_OF_MEMORY);
		/* Nothing moves it any more; the end of its allocation must not wait for it. */
		pager_set_state(device, index, ABSENT);
		free(transfer);
		return;
	}
	*transfer = (struct transfer){ device, index, trace_begin() };
	client_request(&request, op);
	message_uint(&request, "chunk", index);
	message_uint(&request, "arena", device->mover.arenas[ram.arena].id);
	message_uint(&request, "slot", ram.slot);
	if (keep >= 0)
		message_uint(&request, "keep", (uint64_t)keep);
	client_post(&device->client, &request, done, transfer);
	take_back(device);
}

/*
 * One that a launch waits for goes only before nothing can move at all: with every RAM
 * slot full of what is wanted, no chunk could leave VRAM for it.
 */
static enum predict_leave may_spill(void *arg, uint32_t index)
{
	const struct device *device = arg;
	const struct chunk *chunk = &device->chunks[index];

	/* From an arena that leaves it goes anyway, and leaves no room. */
	if (chunk->state != ABSENT || chunk->home != HOME_T2 || leaving(device, index))
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

static void arena_done(void *arg, const struct reply *reply)
{
	struct device *device = arg;

	pthread_mutex_lock(&device->lock);
	device->arena_answer = *reply;
	device->arena_answered = true;
	pthread_cond_signal(&device->to_open);
	pthread_mutex_unlock(&device->lock);
}

void lower_show_ram(struct device *device)
{
	uint32_t slots, available;

	mover_count_ram(&device->mover, &slots, &available);
	device_gauge(device, COUNTER_ARENA_SLOTS, slots);
	trace_slots(device, device->slots_used, slots - available);
	device_gauge_most(device, COUNTER_ARENA_SLOTS_USED, COUNTER_ARENA_SLOTS_MOST,
			  slots - available);
}

void lower_open(struct device *device)
{
	const struct reply reply = device->arena_answer;
	struct arena arena;
	bool opened = false;

	/* Cleared last: a recall of the arena has to wait until it is there. */
	if (!reply.error) {
		let_go(device);
		/* Without a file: this process may open no more. */
		opened = reply.fd >= 0 && mover_open_arena(&device->mover, reply.arena, reply.fd,
							   device->terms.arena, &arena);
		take_back(device);
		if (opened && !mover_add_arena(&device->mover, &arena)) {
			let_go(device);
			mover_close_arena(&device->mover, &arena);
			take_back(device);
			opened = false;
		}
		if (!opened) {
			let_go(device);
			client_return(&device->client, reply.arena); /* others may have it */
			take_back(device);
		}
	}
	device->arena_answered = device->arena_asked = false;
	device->arena_came = opened;
	device->arena_refusals = opened ? 0 : SPILLS_BETWEEN_ASKING;
	lower_show_ram(device);
	pthread_cond_signal(&device->work);
	pthread_cond_broadcast(&device->changed);
}

void *lower_opener(void *arg)
{
	struct device *device = arg;
	CUresult result = pager_thread_begins(device, "greenboost-ram");

	take_back(device);
	if (result)
		pager_stop(device, "starting the opener", result);
	for (;;) {
		if (device->arena_answered)
			lower_open(device);
		else
			pthread_cond_wait(&device->to_open, &device->lock);
	}
	return NULL;
}

static void ask_for_arena(struct device *device)
{
	struct message request;

	if (device->arena_asked)
		return;
	device->arena_asked = true;
	let_go(device);
	client_request(&request, "arena");
	client_post(&device->client, &request, arena_done, device);
	take_back(device);
}

bool lower_more_ram(struct device *device)
{
	uint64_t traced = trace_begin();

	/* A recall that is served while one is awaited may lead back here; there is one answer. */
	if (device->arena_awaited)
		return false;
	device->arena_awaited = true;
	ask_for_arena(device);
	/* The daemon may have to recall an arena first, from another session that waits like this:
	 * were recalls not served meanwhile, both could wait for each other. */
	while (device->arena_asked) {
		if (!device->recall_count || !lower_serve_recalls(device))
			pthread_cond_wait(&device->changed, &device->lock);
	}
	trace_host(device, traced, "get an arena", TRACE_NO_CHUNK,
		   device->arena_came ? "granted" : "refused");
	device->arena_awaited = false;
	return device->arena_came;
}

/*
 * Making an arena takes as long as filling it: so it is asked for when the ones there are
 * become full, as long as the chunks there are fill VRAM and the last arena but one: memory
 * is mostly allocated bit by bit. Not while the daemon wants some back.
 */
static void ask_early(struct device *device)
{
	uint64_t arena = device->terms.arena / device->chunk;
	uint32_t slots, available;

	mover_count_ram(&device->mover, &slots, &available);
	if (!device->arena_refusals && !device->recall_count &&
	    slots + device->slots_allowed < device->committed + arena &&
	    EARLY_SHARE * available < (EARLY_SHARE - 1) * arena)
		ask_for_arena(device);
}

/* Frees the RAM slot at once where T3 has the bytes already. */
static bool spill_clean(struct device *device, uint32_t index)
{
	if (!device->chunks[index].extent)
		return false;
	leave_ram(device, &device->chunks[index]);
	device_count(device, COUNTER_SPILLS_CLEAN, 1);
	pager_set_state(device, index, ABSENT);
	return true;
}

static void start_spill(struct device *device, uint32_t index)
{
	if (spill_clean(device, index))
		return;
	device->spills++;
	pager_set_state(device, index, SPILLING);
	post_transfer(device, "spill", index, -1, spill_done);
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

void lower_drop_extent(struct device *device, uint32_t index)
{
	if (!device->chunks[index].extent)
		return;
	device->chunks[index].extent = false;
	let_go(device);
	residency_drop_extents(device, &index, 1);
	take_back(device);
}

/*
 * T3 is full, but some of what it has is also in VRAM or RAM: make room by giving up
 * the one or the other. What is wanted now stays where it is. False: there is nothing
 * of the kind.
 */
static bool give_up_extents(struct device *device)
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
				start_spill(device, c);
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

void lower_start_fetch(struct device *device, uint32_t index, struct ram_place place)
{
	device->chunks[index].ram = place;
	device->fetches++;
	pager_set_state(device, index, FETCHING);
	/* Without a checksum nobody could tell whether it is still right. */
	post_transfer(device, "fetch", index, device->chunks[index].summed, fetch_done);
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

/* The same, but not before every spill: it had none a moment ago. */
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
			ask_early(device);
			return place;
		}
		if (device->copies > device->slots_allowed / COPY_SHARE && give_up_copy(device))
			continue;
		/* Nobody waits for an arena while there are copies to give up. */
		if (!device->spills && device->copies && !device->arena_refusals &&
		    !device->recall_count)
			ask_for_arena(device);
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
		if (device->spill_error == ENOSPC && give_up_extents(device)) {
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
			start_spill(device, victim);
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

/*
 * Move a chunk out of an arena that leaves: to VRAM or another arena if there is
 * room, else to T3. In VRAM already, it has only a copy there.
 */
static void depart(struct device *device, uint32_t index)
{
	struct chunk *chunk = &device->chunks[index];
	struct ram_place place;
	struct ticket *busy;
	uint64_t traced;

	if (chunk->state == RESIDENT) {
		lower_forget_copy(device, index);
		return;
	}
	if (chunk->state == MAPPED) {
		if (vram_awaiting(device))
			vram_look_again(device);
		else if (in_place_may_end(device, index)) /* it let go of the lock */
			in_place_end(device, index);
		return;
	}
	/* Also because the daemon counts on it: what fits VRAM is promised no place in T3. */
	if (device->slots_used < device->slots_allowed && vram_rise(device, index, true))
		return;
	if (chunk->state != ABSENT || !leaving(device, index) || spill_clean(device, index))
		return;
	place = lower_take_ram(device);
	/* Nobody else may take it while its bytes are on the way. */
	pager_set_state(device, index, SPILLING);
	if (ram_none(place)) {
		device->departures++;
		post_transfer(device, "spill", index, -1, departed);
		return;
	}
	busy = ticket_get(mover_ram_slot(&device->mover, chunk->ram)->busy);
	traced = trace_begin();
	let_go(device);
	ticket_wait(busy);
	ticket_put(busy);
	ticket_wait(mover_ram_slot(&device->mover, place)->busy);
	memcpy(mover_ram(&device->mover, place), mover_ram(&device->mover, chunk->ram),
	       device->chunk);
	take_back(device);
	mover_put_ram(&device->mover, chunk->ram);
	chunk->ram = place;
	trace_host(device, traced, "move to another arena", index, NULL);
	pager_set_state(device, index, ABSENT);
}

static struct arena *find_arena(struct mover *mover, uint64_t id)
{
	for (uint32_t i = 0; i < mover->arena_count; i++)
		if (mover->arenas[i].id == id)
			return &mover->arenas[i];
	return NULL;
}

/* A chunk of the arena that is not on its way yet; PREDICT_NONE: there is none. */
static uint32_t first_in(const struct device *device, const struct arena *arena)
{
	for (uint32_t i = 0; i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];

		for (uint32_t c = a->first; c < a->first + a->chunks; c++) {
			const struct chunk *chunk = &device->chunks[c];

			if ((chunk->state == ABSENT || chunk->state == RESIDENT ||
			     in_place_may_end(device, c)) &&
			    !ram_none(chunk->ram) &&
			    &device->mover.arenas[chunk->ram.arena] == arena)
				return c;
		}
	}
	return PREDICT_NONE;
}

/* One arena after the other, so that the first is back early. */
static uint32_t next_departure(struct device *device)
{
	uint32_t next = PREDICT_NONE;

	for (uint32_t i = 0; i < device->recall_count && next == PREDICT_NONE; i++) {
		struct arena *arena = find_arena(&device->mover, device->recalls[i].arena);

		if (arena && !arena->stays)
			next = first_in(device, arena);
	}
	return next;
}

/* Take the recall off the list; its id. */
static uint64_t end_recall(struct device *device, uint32_t index)
{
	uint64_t id = device->recalls[index].id;

	device->recall_count--;
	memmove(device->recalls + index, device->recalls + index + 1,
		(device->recall_count - index) * sizeof(*device->recalls));
	lower_show_ram(device);
	return id;
}

static void refuse_recall(struct device *device, uint32_t index, int error)
{
	uint64_t arena = device->recalls[index].arena;
	uint64_t id = end_recall(device, index);

	let_go(device);
	client_answer_recall(&device->client, id, arena, error);
	take_back(device);
}

/* The arena is empty: have it closed. False: not now, for want of memory. */
static bool obey_recall(struct device *device, uint32_t index, uint32_t arena)
{
	struct closing **last = &device->closings;
	struct closing *closing = malloc(sizeof(*closing));

	if (!closing)
		return false;
	closing->arena = mover_remove_arena(&device->mover, arena);
	closing->recall = end_recall(device, index);
	closing->next = NULL;
	while (*last)
		last = &(*last)->next;
	*last = closing;
	pthread_cond_signal(&device->to_close);
	return true;
}

void *lower_closer(void *arg)
{
	struct device *device = arg;
	CUresult result = pager_thread_begins(device, "greenboost-drop");
	uint64_t traced;

	take_back(device);
	if (result)
		pager_stop(device, "starting the closer", result);
	for (;;) {
		struct closing *closing = device->closings;

		if (!closing) {
			pthread_cond_wait(&device->to_close, &device->lock);
			continue;
		}
		device->closings = closing->next;
		let_go(device);
		traced = trace_begin();
		mover_close_arena(&device->mover, &closing->arena);
		trace_host(device, traced, "give an arena back", TRACE_NO_CHUNK, NULL);
		client_answer_recall(&device->client, closing->recall, closing->arena.id, 0);
		free(closing);
		take_back(device);
	}
	return NULL;
}

/* Recalled before it is there. */
static bool opening(const struct device *device, uint64_t id)
{
	return device->arena_answered && device->arena_answer.arena == id;
}

/* In it something is used in place that a launch holds which is just being made. */
static bool held_for_a_moment(const struct device *device, const struct arena *arena)
{
	const struct hold *wanted = device->wanted;

	for (uint32_t i = 0; device->mapped && i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];

		for (uint32_t c = a->first; c < a->first + a->chunks; c++) {
			const struct chunk *chunk = &device->chunks[c];

			/* What waits may wait for this arena. */
			if (chunk->state == MAPPED && !device->maps &&
			    &device->mover.arenas[chunk->ram.arena] == arena &&
			    chunk->holds > (wanted && hold_has(wanted, c)))
				return true;
		}
	}
	return false;
}

bool lower_serve_recalls(struct device *device)
{
	struct mover *mover = &device->mover;
	bool moving = device->departures || device->fetches || device->spills;
	uint32_t next = PREDICT_NONE;

	/* Before any chunk moves, or it would go from one arena that leaves to another. */
	for (uint32_t i = 0; i < device->recall_count; i++) {
		struct arena *arena = find_arena(mover, device->recalls[i].arena);

		if (arena)
			arena->leaving = true;
	}
	if (device->departures < DEPARTURES_MOST)
		next = next_departure(device);
	for (uint32_t i = 0; i < device->recall_count; i++) {
		struct arena *arena = find_arena(mover, device->recalls[i].arena);
		int error = arena ? arena->stays : ENOENT;

		if (!arena && opening(device, device->recalls[i].arena))
			continue;
		if (arena && !arena->used) {
			if (obey_recall(device, i, (uint32_t)(arena - mover->arenas)))
				return true;
			error = ENOMEM;
		}
		if (!error && (next != PREDICT_NONE || moving || held_for_a_moment(device, arena)))
			continue;
		if (arena) {
			arena->stays = 0;
			if (error == ENOSPC && give_up_extents(device))
				return true;
			log_warn("an arena stays, as it cannot be emptied");
			error = error ? error : EBUSY;
			arena->leaving = false;
		}
		refuse_recall(device, i, error);
		return true;
	}
	if (next == PREDICT_NONE)
		return false;
	depart(device, next);
	return true;
}
