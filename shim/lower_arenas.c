// SPDX-License-Identifier: GPL-2.0-or-later
/* Arenas: asked for, opened, and emptied and closed when the daemon wants them back. */
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

/* Another one is asked for when this share of the last one is in use (to divide by). */
#define EARLY_SHARE 4

/* Chunks spilled at a time to empty those that are asked back. */
#define DEPARTURES_MOST 8

bool lower_leaving(const struct device *device, uint32_t index)
{
	struct ram_place place = device->chunks[index].ram;

	return !ram_none(place) && device->mover.arenas[place.arena].leaving;
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
		uint64_t traced = trace_begin();

		let_go(device);
		/* Without a file: this process may open no more. */
		opened = reply.fd >= 0 && mover_open_arena(&device->mover, reply.arena, reply.fd,
							   device->terms.arena, &arena);
		take_back(device);
		trace_host(device, traced, "register an arena", TRACE_NO_CHUNK,
			   opened ? "opened" : "refused");
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

void lower_ask_for_arena(struct device *device)
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
	lower_ask_for_arena(device);
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

void lower_ask_early(struct device *device)
{
	uint64_t arena = device->terms.arena / device->chunk;
	uint32_t slots, available;

	mover_count_ram(&device->mover, &slots, &available);
	if (!device->arena_refusals && !device->recall_count &&
	    slots + device->slots_allowed < device->committed + arena &&
	    EARLY_SHARE * available < (EARLY_SHARE - 1) * arena)
		lower_ask_for_arena(device);
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
	if (chunk->state != ABSENT || !lower_leaving(device, index) ||
	    lower_spill_clean(device, index))
		return;
	place = lower_take_ram(device);
	/* Nobody else may take it while its bytes are on the way. */
	pager_set_state(device, index, SPILLING);
	if (ram_none(place)) {
		lower_depart(device, index);
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
			if (error == ENOSPC && lower_give_up_extents(device))
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
