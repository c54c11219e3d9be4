// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "in_place.h"

#include "log.h"
#include "pager.h"
#include "trace.h"

static void show(struct device *device)
{
	device_gauge(device, COUNTER_MAPPED_SLOTS, device->mapped);
}

static bool room_for_one(struct device *device)
{
	while (!device->maps && device->mapped >= residency_in_place(device)) {
		bool pressed = device->wanted && device->wanted->pressed;

		if (!in_place_end_any(device, false) && !lower_more_ram(device) &&
		    !(pressed && in_place_end_any(device, true)))
			return false;
	}
	return !device->stopped;
}

bool in_place_begin(struct device *device, uint32_t index)
{
	struct chunk *chunk = &device->chunks[index];
	uint64_t traced = trace_begin();
	struct ram_place place;
	struct ticket *busy;
	CUresult result;
	bool fresh;

	if (!room_for_one(device))
		return false;
	/* It let go of the lock: the chunk may even have left RAM. */
	if (chunk->state != ABSENT || (chunk->home != HOME_EMPTY && chunk->home != HOME_T2))
		return true;
	fresh = ram_none(chunk->ram);
	place = fresh ? lower_make_ram(device) : chunk->ram;
	if (ram_none(place))
		return false;
	/* Making room let go of the lock. */
	if (chunk->state != ABSENT) {
		if (fresh)
			mover_put_ram(&device->mover, place);
		return true;
	}
	chunk->ram = place;
	pager_set_state(device, index, RISING);
	busy = ticket_get(mover_ram_slot(&device->mover, place)->busy);
	let_go(device);
	/* The last copy to or from the slot. Kernels would not wait for it. */
	result = ticket_wait(busy);
	ticket_put(busy);
	if (!result)
		result = mover_map_ram(&device->mover, chunk->address, place);
	take_back(device);
	trace_host(device, traced, "map in RAM", index,
		   result  ? "refused"
		   : fresh ? "new"
			   : "moved");
	if (result) {
		log_warn("RAM cannot be used in place at 0x%llx: %s", chunk->address,
			 driver_error(result));
		if (fresh) {
			mover_put_ram(&device->mover, place);
			chunk->ram = NO_RAM;
		}
		pager_set_state(device, index, ABSENT);
		return false;
	}
	chunk->home = HOME_T2;
	predict_moved(&device->predictor, index, PLACE_RAM, false);
	__atomic_store_n(&device->mapped, device->mapped + 1, __ATOMIC_RELAXED);
	show(device);
	pager_set_state(device, index, MAPPED);
	return true;
}

static CUresult unmap(struct device *device, struct chunk *chunk)
{
	CUresult result;

	let_go(device);
	result = mover_unmap_ram(&device->mover, chunk->address);
	take_back(device);
	__atomic_store_n(&device->mapped, device->mapped - 1, __ATOMIC_RELAXED);
	show(device);
	return result;
}

void in_place_end(struct device *device, uint32_t index)
{
	struct chunk *chunk = &device->chunks[index];
	uint64_t traced = trace_begin();
	struct checksum sum;
	CUresult result;
	bool same;

	pager_set_state(device, index, SINKING);
	/* Kernels may have written to it: what T3 has is right only if they have not. */
	result = vram_settle(device, chunk, chunk->address, &sum, &same);
	if (!result && !same)
		lower_drop_extent(device, index);
	if (!result)
		result = unmap(device, chunk);
	if (result) {
		pager_stop(device, "moving a chunk in RAM", result);
		return;
	}
	chunk->summed = device->summer.kernel;
	chunk->sum = sum;
	trace_host(device, traced, "unmap in RAM", index, same ? "clean" : "changed");
	pager_set_state(device, index, ABSENT);
}

bool in_place_may_end(const struct device *device, uint32_t index)
{
	const struct chunk *chunk = &device->chunks[index];

	return chunk->state == MAPPED && !device->maps && !chunk->holds;
}

static enum predict_leave may_end(void *arg, uint32_t index)
{
	const struct device *device = arg;
	const struct chunk *chunk = &device->chunks[index];

	if (!in_place_may_end(device, index))
		return LEAVE_NOT;
	return chunk->grace ? LEAVE_GRACE : chunk->sticky ? LEAVE_LAST : LEAVE_CLEAN;
}

bool in_place_end_any(struct device *device, bool graced)
{
	uint32_t index;

	if (!device->mapped || device->maps || vram_awaiting(device))
		return false;
	index = predict_victim(&device->predictor, PLACE_RAM, HASTE_HURRY, may_end, device);
	if (index == PREDICT_NONE || (!graced && may_end(device, index) == LEAVE_GRACE))
		return false;
	sparse_wanted(&device->sparse, index); /* or it would be back at once */
	in_place_end(device, index);
	return true;
}

void in_place_free(struct device *device, uint32_t index)
{
	unmap(device, &device->chunks[index]);
}

bool in_place_free_waits(struct device *device, const struct allocation *allocation)
{
	bool waits = false;

	pthread_mutex_lock(&device->lock);
	for (uint32_t c = 0; device->mapped && c < allocation->chunks && !waits; c++)
		waits = device->chunks[allocation->first + c].state == MAPPED;
	waits = waits && vram_awaiting(device);
	pthread_mutex_unlock(&device->lock);
	return waits;
}
