// SPDX-License-Identifier: GPL-2.0-or-later
/* What launches and copies held, once they are made, or are not: when it may leave. */
#include "residency.h"

#include <stdlib.h>

bool residency_add_use(struct chunk *chunk, struct ticket *ticket)
{
	uint64_t key = atomic_load(&ticket->stream);
	int place = -1;

	for (int i = 0; i < CHUNK_USES; i++) {
		struct ticket *use = chunk->uses[i];

		if (use && key && atomic_load(&use->stream) == key) {
			/* Another thread, with a later one, may have been quicker. */
			if (use->sequence > ticket->sequence)
				return true;
			place = i;
			break;
		}
		if (place < 0 && ticket_done(use))
			place = i;
	}
	if (place < 0)
		return false;
	ticket_put(chunk->uses[place]);
	chunk->uses[place] = ticket_get(ticket);
	return true;
}

/*
 * More streams use the chunk at once than there are places: one ticket stands for
 * two uses, in a stream that waits for both. The chunk is still held.
 */
static void chunk_join_uses(struct device *device, struct chunk *chunk, struct ticket *ticket)
{
	ticket = ticket_get(ticket);
	while (!residency_add_use(chunk, ticket)) {
		struct ticket *other = chunk->uses[0], *both = NULL;
		CUstream join = device->mover.join;

		chunk->uses[0] = NULL;
		pthread_mutex_unlock(&device->lock);
		if (!ticket_wait_on(other, join, 0) && !ticket_wait_on(ticket, join, 0))
			both = ticket_record(join, 0);
		if (!both) {
			/* Of another context, perhaps. */
			ticket_wait(other);
			ticket_wait(ticket);
		}
		ticket_put(other);
		ticket_put(ticket);
		ticket = both;
		pthread_mutex_lock(&device->lock);
		if (!ticket)
			return;
	}
	ticket_put(ticket);
}

/* The pager will ask whether it is over. */
static void note_recent(struct device *device, struct ticket *ticket)
{
	uint32_t last = (device->recent_first + device->recent_count) % RECENT_MOST;

	if (device->recent_count == RECENT_MOST) {
		ticket_put(device->recent[last]);
		device->recent_first = (last + 1) % RECENT_MOST;
	} else {
		device->recent_count++;
	}
	device->recent[last] = ticket_get(ticket);
}

static void hold_free(struct hold *hold)
{
	for (uint32_t i = 0; i < hold->arrival_count; i++)
		ticket_put(hold->arrivals[i]);
	hold->arrival_count = 0;
	if (hold->chunks != hold->in_place)
		free(hold->chunks);
}

void residency_release(struct device *device, struct hold *hold, CUstream stream,
		       unsigned int variant)
{
	struct ticket *ticket = ticket_record(stream, variant);

	/*
	 * Without a ticket the end of the work is waited for. Its stream may be of
	 * another context than the current one: copies are allowed that.
	 */
	if (!ticket)
		driver.cuStreamSynchronize[variant](stream);
	pthread_mutex_lock(&device->lock);
	for (uint32_t i = 0; i < hold->count; i++) {
		struct chunk *chunk = &device->chunks[hold->chunks[i]];

		if (ticket && !residency_add_use(chunk, ticket))
			chunk_join_uses(device, chunk, ticket);
		chunk->holds--;
	}
	if (ticket)
		note_recent(device, ticket);
	if (ticket && hold->tag && !device->maps)
		grace_launched(device, hold, ticket);
	device->prefetch = true;
	pthread_cond_signal(&device->work);
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
	ticket_put(ticket);
	hold_free(hold);
}

void residency_timed(struct device *device, const struct hold *hold, struct span_of_time time)
{
	struct sample sample = { hold->timed, time, false, hold->alone };
	bool kept;

	pthread_mutex_lock(&device->lock);
	/* What is believed may all be in VRAM, where quick is another thing than over the bus. */
	for (uint32_t c = 0; c < hold->little.chunks; c++)
		sample.in_place |= device->chunks[hold->little.first + c].state == MAPPED;
	kept = time.before && time.after && sparse_sample(&device->sparse, &sample);
	pthread_mutex_unlock(&device->lock);
	if (!kept) {
		timing_put(&device->mover.timing, time.before);
		timing_put(&device->mover.timing, time.after);
	}
}

void residency_fix(struct device *device, struct hold *hold)
{
	pthread_mutex_lock(&device->lock);
	for (uint32_t i = 0; i < hold->count; i++) {
		struct chunk *chunk = &device->chunks[hold->chunks[i]];

		device->fixed += !chunk->fixed;
		chunk->fixed = true;
		chunk->holds--;
		residency_show(device, hold->chunks[i]);
	}
	pthread_cond_signal(&device->work);
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
	hold_free(hold);
}

void residency_await(struct device *device, CUstream stream, unsigned int variant)
{
	struct ticket *ticket = ticket_record(stream, variant);
	int place = 0;

	if (!ticket)
		return;
	pthread_mutex_lock(&device->lock);
	while (place < AWAITS_MOST - 1 && !ticket_done(device->awaits[place]))
		place++;
	ticket_put(device->awaits[place]);
	device->awaits[place] = ticket;
	pthread_mutex_unlock(&device->lock);
}

void residency_cancel(struct device *device, struct hold *hold)
{
	pthread_mutex_lock(&device->lock);
	for (uint32_t i = 0; i < hold->count; i++)
		device->chunks[hold->chunks[i]].holds--;
	pthread_cond_signal(&device->work);
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
	hold_free(hold);
}
