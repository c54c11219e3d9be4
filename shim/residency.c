// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "residency.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gate.h"
#include "log.h"
#include "trace.h"

/* An object of fewer chunks is not worth it. */
#define SPARSE_LEAST 4

void residency_show(struct device *device, uint32_t index)
{
	static const unsigned char homes[] = { STATE_EMPTY, STATE_T1, STATE_T2, STATE_T3,
					       STATE_T3 };
	const struct chunk *chunk = &device->chunks[index];
	unsigned char letter;

	switch (chunk->state) {
	case RESIDENT:
		letter = chunk->fixed ? STATE_PINNED : STATE_T1;
		break;
	case MAPPED:
		letter = STATE_MAPPED;
		break;
	case RISING:
	case FETCHING:
		letter = STATE_RISING;
		break;
	case SINKING:
	case SPILLING:
		letter = STATE_SINKING;
		break;
	default:
		letter = homes[chunk->home];
	}
	__atomic_store_n(&device->state_map[index], letter, __ATOMIC_RELAXED);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/*
 * Content that will be overwritten whole need not come back first. Returns how
 * many of the chunks in dropped[] (room for the span's) the daemon must be told of.
 */
static uint32_t forget_overwritten(struct device *device, const struct span *span,
				   uint32_t *dropped)
{
	uint32_t count = 0;
	uint64_t first = (span->begin + device->chunk - 1) / device->chunk;
	uint64_t end = span->end / device->chunk;

	if (span->end == span->allocation->bytes)
		end = span->allocation->chunks; /* what lies behind the last byte is nobody's */
	for (uint64_t i = first; i < end; i++) {
		uint32_t index = span->allocation->first + (uint32_t)i;
		struct chunk *chunk = &device->chunks[index];

		if (chunk->state != ABSENT || chunk->holds || chunk->home == HOME_EMPTY)
			continue;
		if (!ram_none(chunk->ram)) {
			mover_put_ram(&device->mover, chunk->ram);
			chunk->ram = NO_RAM;
		}
		if (chunk->extent || chunk->home == HOME_LOST)
			dropped[count++] = index;
		chunk->extent = chunk->summed = false;
		chunk->home = HOME_EMPTY;
		predict_moved(&device->predictor, index, PLACE_AWAY, false);
		residency_show(device, index);
	}
	return count;
}

static void drop_done(void *arg, const struct reply *reply)
{
	(void)arg;
	(void)reply; /* at worst the extent stays taken until the allocation is freed */
}

void residency_drop_extents(struct device *device, const uint32_t *dropped, uint32_t count)
{
	bool untold;

	pthread_mutex_lock(&device->lock);
	untold = device->untold;
	pthread_mutex_unlock(&device->lock);
	/* The next daemon will not be told that they are counted on. There is room for few requests
	 * that wait for it. */
	if (untold)
		return;
	for (uint32_t i = 0; i < count; i++) {
		struct message request;

		client_request(&request, "drop");
		message_uint(&request, "chunk", dropped[i]);
		client_post(&device->client, &request, drop_done, NULL);
	}
}

static bool all_resident(const struct device *device, const struct hold *hold)
{
	for (uint32_t i = 0; i < hold->count; i++)
		if (!hold_usable(device, hold, i))
			return false;
	return true;
}

/* Of arrivals by one stream the latest stands for all before it. */
static void hold_add_arrival(struct hold *hold, struct ticket *arrival)
{
	uint64_t stream = atomic_load(&arrival->stream);
	uint32_t i;

	for (i = 0; i < hold->arrival_count; i++)
		if (atomic_load(&hold->arrivals[i]->stream) == stream)
			break;
	if (i == hold->arrival_count) {
		hold->arrivals[hold->arrival_count++] = ticket_get(arrival);
	} else if (hold->arrivals[i]->sequence < arrival->sequence) {
		ticket_put(hold->arrivals[i]);
		hold->arrivals[i] = ticket_get(arrival);
	}
}

/* Those that hold->absent counts, for a trace. */
static uint32_t *list_absent(const struct device *device, const struct hold *hold)
{
	uint32_t *absent = malloc(hold->absent * sizeof(*absent));
	uint32_t count = 0;

	for (uint32_t i = 0; absent && i < hold->count; i++)
		if (!hold_usable(device, hold, i))
			absent[count++] = hold->chunks[i];
	return absent;
}

static void note_excess(struct device *device, const struct hold *hold)
{
	uint32_t fit = 0;
	bool slow = false;

	device_count(device, COUNTER_LAUNCHES_EXCEEDING, 1);
	if (device->excess_said)
		return;
	for (uint32_t i = 0; i < hold->count; i++) {
		bool fits = device->chunks[hold->chunks[i]].state == RESIDENT;

		fit += fits;
		slow = slow || !(fits || hold_guesses(hold, i));
	}
	/* What is only guessed is hardly read. */
	if (!slow)
		return;
	device->excess_said = true;
	log_warn("a launch names %u chunks of %zu MiB, and %u fit VRAM: the others are used in "
		 "RAM, over the bus, which is slow where they are read more than once; more "
		 "--vram would help",
		 hold->count, device->chunk >> 20, fit);
}

/*
 * Is there an object of which such launches read little, or may? Its chunks are those that
 * nothing else lies in.
 */
static void find_sparse(struct device *device, const struct span *spans, uint32_t count,
			struct hold *hold)
{
	hold->timed = (struct reading){ 0 };
	if (device->maps || hold->where != HOLD_EXCESS || hold->cut)
		return;
	for (uint32_t s = 0; s < count; s++) {
		const struct span *span = &spans[s];
		uint64_t first = (span->begin + device->chunk - 1) / device->chunk;
		uint64_t end = span->end == span->allocation->bytes ? span->allocation->chunks
								    : span->end / device->chunk;
		struct reading reading = { .tag = hold->tag };

		if (end < first + SPARSE_LEAST)
			continue;
		reading.first = span->allocation->first + (uint32_t)first;
		reading.chunks = (uint32_t)(end - first);
		if (sparse_is(&device->sparse, &reading) ||
		    (device->mapped &&
		     sparse_likely(&device->sparse, &reading, device->chunks[reading.first].tag)))
			hold->little = reading;
		if (reading.chunks > hold->timed.chunks &&
		    sparse_doubtful(&device->sparse, &reading))
			hold->timed = reading;
	}
	if (hold->little.chunks)
		hold->timed = hold->little; /* does it still? */
	hold->alone = true;
	for (uint32_t c = 0; c < hold->timed.chunks && hold->alone; c++) {
		struct reading last = hold->timed;

		last.tag = device->chunks[last.first + c].tag;
		hold->alone = last.tag == hold->tag || sparse_is(&device->sparse, &last);
	}
}

static void note_uses(struct device *device, const struct hold *hold)
{
	predict_slots(&device->predictor, device->slots_allowed);
	predict_begin(&device->predictor, hold->tag);
	for (uint32_t i = 0; i < hold->count; i++) {
		uint32_t index = hold->chunks[i];
		bool usable = hold_usable(device, hold, i);
		bool mapped = usable && device->chunks[index].state == MAPPED;

		device_count(device,
			     mapped   ? COUNTER_CHUNKS_IN_PLACE
			     : usable ? COUNTER_CHUNK_HITS
				      : COUNTER_CHUNK_STALLS,
			     1);
		if (hold_reads_little(hold, index) || hold_guesses(hold, i))
			continue;
		if (usable && device->predictor.chunks[index].unread)
			device_count(device, COUNTER_PREFETCH_HITS, 1);
		predict_use(&device->predictor, index);
	}
	predict_end(&device->predictor);
}

/* In the lock, which it lets go of. */
static CUresult hold_once(struct device *device, struct span *spans, uint32_t count,
			  struct hold *hold)
{
	uint32_t *dropped = NULL, dropped_count = 0;
	uint32_t *absent = NULL;
	CUresult result;
	uint64_t started = 0, traced = 0;
	bool likely;

	hold->chunks = hold->in_place;
	hold->guessed = hold->guessed_in_place;
	hold->room = HOLD_INLINE;
	hold->arrival_count = 0;
	hold->absent = hold->arriving = 0;
	hold->little = (struct reading){ 0 };
	/*
	 * Only one may wait for chunks while it holds others; two could hold
	 * what each other needs. The rest come back here holding nothing.
	 */
	for (;;) {
		result = device->stopped ? device->stop_error
					 : hold_choose(device, spans, count, hold);
		if (result)
			goto out;
		if (all_resident(device, hold) || !device->wanted)
			break;
		pthread_cond_wait(&device->changed, &device->lock);
	}
	for (uint32_t s = 0; s < count; s++) {
		uint32_t *grown;

		if (!spans[s].overwritten)
			continue;
		grown = realloc(dropped,
				(dropped_count + (spans[s].end - spans[s].begin) / device->chunk +
				 2) * sizeof(*dropped));
		if (!grown)
			break; /* then it is fetched for nothing */
		dropped = grown;
		dropped_count += forget_overwritten(device, &spans[s], dropped + dropped_count);
	}

	find_sparse(device, spans, count, hold);
	likely = hold->little.chunks && !sparse_is(&device->sparse, &hold->little);
	if (!hold->again)
		note_uses(device, hold);
	for (uint32_t i = 0; i < hold->count; i++) {
		uint32_t index = hold->chunks[i];

		device->chunks[index].holds++;
		if (!hold_guesses(hold, i))
			guess_confirmed(&device->chunks[index].guess,
					device->state->counters[COUNTER_EVICTIONS],
					device->slots_allowed);
		/* Until it is known, the next one of its kind goes by the same. */
		if (hold->tag && !(likely && hold_reads_little(hold, index)))
			device->chunks[index].tag = hold->tag;
		hold->absent += !hold_usable(device, hold, i);
	}
	if (hold->absent) {
		started = now_ns();
		traced = trace_begin();
		if (traced)
			absent = list_absent(device, hold);
		device->wanted = hold;
		device->failure = CUDA_SUCCESS;
		pthread_cond_signal(&device->work);
		while (!device->failure && !device->stopped && !all_resident(device, hold))
			pthread_cond_wait(&device->changed, &device->lock);
		result = device->stopped ? device->stop_error : device->failure;
		device->wanted = NULL;
		pthread_cond_broadcast(&device->changed);
		device_count(device, COUNTER_STALL_NS, now_ns() - started);
		if (absent)
			trace_stall(device, traced, absent, hold->absent);
	}
	if (!result && hold->exceeds)
		note_excess(device, hold);
	if (dropped_count) {
		pthread_mutex_unlock(&device->lock);
		/* While they are held, so that none can be spilled anew before. */
		residency_drop_extents(device, dropped, dropped_count);
		pthread_mutex_lock(&device->lock);
	}
	for (uint32_t i = 0; i < hold->count; i++) {
		uint32_t index = hold->chunks[i];
		struct chunk *chunk = &device->chunks[index];

		if (result) {
			chunk->holds--;
			continue;
		}
		if (chunk->arrival && ticket_done(chunk->arrival)) {
			ticket_put(chunk->arrival);
			chunk->arrival = NULL;
		}
		hold->arriving += chunk->arrival != NULL;
		if (chunk->arrival)
			hold_add_arrival(hold, chunk->arrival);
	}
out:
	free(dropped);
	free(absent);
	if (result && hold->chunks != hold->in_place)
		free(hold->chunks);
	return result;
}

CUresult residency_hold(struct device *device, struct span *spans, uint32_t count,
			struct hold *hold)
{
	CUresult result;

	hold->cut = hold->cut_least = CUT_NOTHING;
	hold->exceeds = hold->again = false;
	pthread_mutex_lock(&device->lock);
	/* RAM may turn out to have less room than it could have had: first as much as there is. */
	while ((result = hold_once(device, spans, count, hold)) == CUDA_ERROR_OUT_OF_MEMORY &&
	       hold->exceeds && hold->cut < CUT_DOUBTFUL && !device->stopped) {
		hold->cut_least = hold->cut + hold->again;
		hold->again = true;
	}
	for (uint32_t s = 0; s < count; s++)
		if (spans[s].guest)
			spans[s].allocation->guests--;
	if (result) {
		pthread_cond_signal(&device->work);
		pthread_cond_broadcast(&device->changed);
	}
	pthread_mutex_unlock(&device->lock);
	return result;
}

CUresult residency_begin(struct hold *hold, CUstream stream, unsigned int variant)
{
	CUresult result = CUDA_SUCCESS;

	for (uint32_t i = 0; i < hold->arrival_count; i++) {
		CUresult waited = ticket_wait_on(hold->arrivals[i], stream, variant);

		if (waited)
			result = waited;
		ticket_put(hold->arrivals[i]);
	}
	hold->arrival_count = 0;
	return result;
}

CUresult residency_begin_captured(struct hold *hold)
{
	/* A capture of this thread must not forbid waiting for other streams. */
	int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
	CUresult result = driver.cuThreadExchangeStreamCaptureMode(&mode);

	if (result)
		return result;
	for (uint32_t i = 0; i < hold->arrival_count; i++) {
		CUresult waited = ticket_wait(hold->arrivals[i]);

		if (waited)
			result = waited;
		ticket_put(hold->arrivals[i]);
	}
	hold->arrival_count = 0;
	driver.cuThreadExchangeStreamCaptureMode(&mode);
	return result;
}

void residency_pin(struct device *device, uint32_t first, uint32_t chunks, uint64_t bytes)
{
	for (uint32_t c = first; c < first + chunks; c++) {
		struct chunk *chunk = &device->chunks[c];
		struct pin *pin = pins_find(&device->pins, bytes, chunk->address, device->chunk);

		if (!pin || chunk->fixed)
			continue;
		if (device->fixed + LEAST_SLOTS >= device->slots_allowed) {
			if (!pin->refused)
				log_warn(
					"not all stays in VRAM that a pin names (%s 0x%llx to "
					"0x%llx): "
					"%u chunks of %zu stay already, and there are %u; what has "
					"no room is paged",
					pin->by_address ? "addresses" : "bytes",
					(unsigned long long)pin->low, (unsigned long long)pin->high,
					device->fixed, device->chunk, device->slots_allowed);
			pin->refused = true;
			device_count(device, COUNTER_PINS_REFUSED, 1);
			continue;
		}
		chunk->fixed = chunk->pinned = true;
		device->fixed++;
		device_gauge(device, COUNTER_PINNED_CHUNKS, ++device->pinned);
	}
}

void residency_unpin(struct device *device, struct chunk *chunk)
{
	if (chunk->pinned)
		device_gauge(device, COUNTER_PINNED_CHUNKS, --device->pinned);
}

static bool any_held(const struct device *device, uint32_t first, uint32_t chunks)
{
	bool held = false;

	for (uint32_t c = first; c < first + chunks && !held; c++)
		held = device->chunks[c].holds;
	return held;
}

void residency_wait_unnamed(struct device *device, const struct allocation *allocation)
{
	pthread_mutex_lock(&device->lock);
	while (allocation->guests || any_held(device, allocation->first, allocation->chunks))
		pthread_cond_wait(&device->changed, &device->lock);
	pthread_mutex_unlock(&device->lock);
}

void residency_wait_unheld(struct device *device, uint32_t first, uint32_t chunks)
{
	pthread_mutex_lock(&device->lock);
	while (any_held(device, first, chunks))
		pthread_cond_wait(&device->changed, &device->lock);
	pthread_mutex_unlock(&device->lock);
}

void residency_begin_paging(struct device *device)
{
	if (atomic_load(&device->paging))
		return;
	/* Two threads may: a gate closed for two reasons, neither of which ends, is closed. */
	gate_close();
	if (!atomic_exchange(&device->paging, true))
		trace_moment(device, "launches are looked at from here on", 0, 0, NULL);
}

CUresult residency_announce(struct device *device, uint32_t slots)
{
	struct message request;
	struct reply reply;

	client_request(&request, "vram");
	message_uint(&request, "slots", slots);
	message_uint(&request, "bytes", device->limit);
	if (client_call(&device->client, &request, &reply))
		return CUDA_ERROR_OUT_OF_MEMORY;
	atomic_store(&device->slots_announced, slots);
	return CUDA_SUCCESS;
}

CUresult residency_wait_for_the_unseen(struct device *device)
{
	CUresult result;

	if (atomic_load(&device->quiet))
		return CUDA_SUCCESS;
	if (!gate_forbid_captures())
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	result = driver.cuCtxSynchronize();
	gate_allow_captures();
	if (!result)
		atomic_store(&device->quiet, true);
	return result;
}
