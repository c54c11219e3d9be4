// SPDX-License-Identifier: GPL-2.0-or-later
/* T3, which the daemon reads and writes, a chunk at a time. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "log.h"
#include "pager.h"
#include "trace.h"

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
	else if (lower_leaving(device, transfer->chunk))
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

bool lower_spill_clean(struct device *device, uint32_t index)
{
	if (!device->chunks[index].extent)
		return false;
	leave_ram(device, &device->chunks[index]);
	device_count(device, COUNTER_SPILLS_CLEAN, 1);
	pager_set_state(device, index, ABSENT);
	return true;
}

void lower_spill(struct device *device, uint32_t index)
{
	if (lower_spill_clean(device, index))
		return;
	device->spills++;
	pager_set_state(device, index, SPILLING);
	post_transfer(device, "spill", index, -1, spill_done);
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

void lower_start_fetch(struct device *device, uint32_t index, struct ram_place place)
{
	device->chunks[index].ram = place;
	device->fetches++;
	pager_set_state(device, index, FETCHING);
	/* Without a checksum nobody could tell whether it is still right. */
	post_transfer(device, "fetch", index, device->chunks[index].summed, fetch_done);
}

void lower_depart(struct device *device, uint32_t index)
{
	device->departures++;
	post_transfer(device, "spill", index, -1, departed);
}
