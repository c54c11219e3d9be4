// SPDX-License-Identifier: GPL-2.0-or-later
/* Allocations and their ends: which of the ways to hold memory each takes. */
#define _GNU_SOURCE
#include <errno.h>

#include "device.h"
#include "log.h"
#include "memory.h"
#include "record.h"
#include "trace.h"

/* Small allocations go to the driver, up to half of VRAM; beyond that they are paged like the rest.
 */
#define DIRECT_SHARE 2
#define DIRECT_ALIGNMENT 512
/* Fewer slots than these move nothing. */
#define SLOTS_LEAST 4

CUresult memory_synchronize(struct device *device)
{
	CUcontext current;
	CUresult result = driver.cuCtxGetCurrent(&current);

	if (!result && current != device->context)
		result = driver.cuCtxSetCurrent(device->context);
	if (!result)
		result = driver.cuCtxSynchronize();
	if (current != device->context)
		driver.cuCtxSetCurrent(current);
	return result;
}

/* Let the pager bring the slots to this number. In device->allocate. */
static CUresult set_slots(struct device *device, uint32_t slots)
{
	uint32_t least;
	CUresult result = residency_announce(device, slots);

	if (result)
		return result;
	if (device->committed > slots)
		residency_begin_paging(device);
	pthread_mutex_lock(&device->lock);
	device->slots_allowed = slots;
	device_gauge(device, COUNTER_VRAM_SLOTS, slots);
	pthread_cond_signal(&device->work);
	while (device->mover.slots_existing > device->slots_allowed && !device->stopped)
		pthread_cond_wait(&device->changed, &device->lock);
	result = device->stopped		 ? device->stop_error
		 : device->slots_allowed > slots ? CUDA_ERROR_OUT_OF_MEMORY
						 : CUDA_SUCCESS;
	least = device->slots_allowed;
	pthread_mutex_unlock(&device->lock);
	if (least > slots)
		residency_announce(device, least);
	return result;
}

static uint64_t rounded(uint64_t bytes)
{
	return (bytes + DIRECT_ALIGNMENT - 1) / DIRECT_ALIGNMENT * DIRECT_ALIGNMENT;
}

static uint32_t slots_beside(const struct device *device, uint64_t direct)
{
	return (uint32_t)((device->limit - direct) / device->chunk);
}

CUresult memory_take_direct(struct device *device, uint64_t bytes, bool must)
{
	uint64_t direct = device->direct + rounded(bytes);
	uint64_t least = (uint64_t)SLOTS_LEAST * device->chunk;
	uint64_t most = device->limit / DIRECT_SHARE;
	CUresult result;

	if (must && device->limit > least && device->limit - least > most)
		most = device->limit - least;
	if (direct > most)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (slots_beside(device, direct) < device->slots_allowed) {
		result = set_slots(device, slots_beside(device, direct));
		if (result)
			return result;
	}
	device->direct = direct;
	device_gauge(device, COUNTER_DIRECT_BYTES, direct);
	return CUDA_SUCCESS;
}

void memory_give_direct(struct device *device, uint64_t bytes)
{
	device->direct -= rounded(bytes);
	device_gauge(device, COUNTER_DIRECT_BYTES, device->direct);
	if (slots_beside(device, device->direct) > device->slots_allowed)
		set_slots(device, slots_beside(device, device->direct));
}

/* From the driver. CUDA_ERROR_OUT_OF_MEMORY: page it instead. In device->allocate. */
static CUresult allocate_direct(struct device *device, CUdeviceptr *dptr, size_t bytes)
{
	struct allocation *allocation;
	CUresult result = memory_take_direct(device, bytes, false);

	if (result)
		return result;
	result = driver.cuMemAlloc_v2(dptr, bytes);
	if (result) {
		memory_give_direct(device, bytes);
		return result;
	}
	pthread_mutex_lock(&device->lock);
	allocation = alloc_map_add(&device->map, *dptr, bytes, 0, 0);
	pthread_mutex_unlock(&device->lock);
	if (!allocation) {
		driver.cuMemFree_v2(*dptr);
		memory_give_direct(device, bytes);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	trace_moment(device, "allocate", bytes, *dptr, "direct");
	return CUDA_SUCCESS;
}

/* Enter it in the tables: nothing of it is anywhere yet. In device->allocate. */
static struct allocation *enter(struct device *device, CUdeviceptr base, size_t bytes,
				uint32_t first, uint32_t chunks)
{
	struct allocation *allocation;

	pthread_mutex_lock(&device->lock);
	allocation = alloc_map_add(&device->map, base, bytes, first, chunks);
	for (uint32_t i = 0; allocation && i < chunks; i++) {
		device->chunks[first + i] = (struct chunk){
			.address = base + i * device->chunk,
			.slot = NO_SLOT,
			.ram = NO_RAM,
		};
		residency_show(device, first + i);
	}
	if (allocation) {
		device->committed += chunks;
		residency_pin(device, first, chunks, bytes);
		record_allocation(device, allocation);
		trace_moment(device, "allocate", bytes, base, device->maps ? "mapped" : "paged");
	}
	pthread_mutex_unlock(&device->lock);
	return allocation;
}

CUresult memory_map_new(struct device *device, struct allocation *allocation, uint64_t begin,
			uint64_t end)
{
	struct span span = { .allocation = allocation, .begin = begin, .end = end, .named = begin };
	struct hold hold = { .where = HOLD_VRAM };
	uint64_t traced;
	CUresult result;

	if (!device->maps && atomic_load(&device->paging))
		return CUDA_SUCCESS;
	traced = trace_begin();
	result = residency_hold(device, &span, 1, &hold);
	if (!result) {
		result = residency_begin_captured(&hold);
		residency_cancel(device, &hold);
	}
	trace_host(device, traced, "map new memory", TRACE_NO_CHUNK, result ? "refused" : NULL);
	/* The driver had less VRAM than was promised to the daemon: is there room below for
	 * the rest? */
	if (!device->maps && atomic_load(&device->paging))
		result = residency_announce(device, device->slots_allowed);
	return result;
}

struct allocation *memory_claim(struct device *device, CUdeviceptr dptr)
{
	struct allocation *allocation;

	pthread_mutex_lock(&device->lock);
	allocation = alloc_map_find(&device->map, dptr);
	if (allocation && (allocation->base != dptr || allocation->leaving || allocation->sparse))
		allocation = NULL;
	if (allocation)
		allocation->leaving = true;
	pthread_mutex_unlock(&device->lock);
	return allocation;
}

void memory_take_apart(struct device *device, struct allocation *allocation)
{
	const uint32_t first = allocation->first, chunks = allocation->chunks;

	residency_wait_unnamed(device, allocation);
	pthread_mutex_lock(&device->lock);
	record_free(device, allocation);
	trace_moment(device, "free", allocation->bytes, allocation->base, "paged");
	memory_end(device, &(struct ending){ allocation, first, chunks, true });
	device->committed -= chunks;
	pthread_mutex_unlock(&device->lock);
	client_free(&device->client, first);
}

void memory_end(struct device *device, struct ending *ending)
{
	device->ending = ending;
	pthread_cond_signal(&device->work);
	while (device->ending == ending)
		pthread_cond_wait(&device->changed, &device->lock);
}

CUresult memory_admit(struct device *device, struct held_allocation allocation)
{
	CUresult result = CUDA_SUCCESS;
	struct reply reply;

	if (device->slots_announced > device->slots_allowed)
		result = residency_announce(device, device->slots_allowed);
	if (result)
		return result;
	if (!client_alloc(&device->client, allocation, &reply))
		return CUDA_SUCCESS;
	if (reply.error != ENOMEM)
		log_warn("allocating %llu bytes: %s", (unsigned long long)allocation.bytes,
			 reply.message);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

/* In device->allocate. */
static CUresult allocate_paged(struct device *device, CUdeviceptr *dptr, size_t bytes)
{
	uint64_t chunks = ((uint64_t)bytes + device->chunk - 1) / device->chunk;
	struct allocation *allocation;
	CUdeviceptr base;
	uint32_t first;
	CUresult result;

	if (bytes == 0 || chunks > MEMORY_INDEXES)
		return bytes ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&device->lock);
	first = alloc_map_room(&device->map, (uint32_t)chunks, MEMORY_INDEXES);
	pthread_mutex_unlock(&device->lock);
	if (first == UINT32_MAX)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = mover_reserve(&device->mover, &base, chunks);
	if (result)
		return result;
	result = memory_admit(device, (struct held_allocation){ first, chunks, bytes, base });
	if (result) {
		mover_unreserve(&device->mover, base, chunks);
		return result;
	}
	if (device->committed + chunks > device->slots_allowed)
		residency_begin_paging(device);
	allocation = enter(device, base, bytes, first, (uint32_t)chunks);
	if (!allocation) {
		client_free(&device->client, first);
		mover_unreserve(&device->mover, base, chunks);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	result = memory_map_new(device, allocation, 0, bytes);
	if (result) {
		memory_claim(device, base);
		memory_take_apart(device, allocation);
		if (device->slots_announced > device->slots_allowed)
			residency_announce(device, device->slots_allowed);
		return result;
	}
	*dptr = base;
	return CUDA_SUCCESS;
}

CUresult memory_allocate(struct device *device, CUdeviceptr *dptr, size_t bytes)
{
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

	pthread_mutex_lock(&device->allocate);
	ordered_reclaim(device, false);
	if (bytes < device->chunk)
		result = allocate_direct(device, dptr, bytes);
	do {
		if (result == CUDA_ERROR_OUT_OF_MEMORY)
			result = allocate_paged(device, dptr, bytes);
	} while (result == CUDA_ERROR_OUT_OF_MEMORY && ordered_reclaim(device, true));
	pthread_mutex_unlock(&device->allocate);
	return result;
}

CUresult hook_cuMemAlloc_v2(unsigned int variant, CUdeviceptr *dptr, size_t bytes)
{
	struct device *device = device_obtain();

	(void)variant;
	if (!device || !dptr || !bytes)
		return driver.cuMemAlloc_v2(dptr, bytes);
	return memory_allocate(device, dptr, bytes);
}

CUresult hook_cuMemAllocPitch_v2(unsigned int variant, CUdeviceptr *dptr, size_t *pitch,
				 size_t width, size_t height, unsigned int element)
{
	struct device *device = device_obtain();
	size_t row = (width + 511) / 512 * 512; /* what the driver's pitch is a multiple of */
	CUresult result;

	if (!device || !dptr || !pitch || !width || !height)
		return driver.cuMemAllocPitch_v2(dptr, pitch, width, height, element);
	if (height > SIZE_MAX / row)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = hook_cuMemAlloc_v2(variant, dptr, row * height);
	if (!result)
		*pitch = row;
	return result;
}

static CUresult free_direct(struct device *device, struct allocation *allocation, CUdeviceptr dptr)
{
	uint64_t bytes = allocation->bytes;
	CUresult result;

	pthread_mutex_lock(&device->allocate);
	pthread_mutex_lock(&device->lock);
	alloc_map_remove(&device->map, allocation);
	pthread_mutex_unlock(&device->lock);
	trace_moment(device, "free", 0, dptr, "direct");
	result = driver.cuMemFree_v2(dptr);
	memory_give_direct(device, bytes);
	pthread_mutex_unlock(&device->allocate);
	return result;
}

static void unclaim(struct device *device, struct allocation *allocation)
{
	pthread_mutex_lock(&device->lock);
	allocation->leaving = false;
	pthread_mutex_unlock(&device->lock);
}

CUresult hook_cuMemFree_v2(unsigned int variant, CUdeviceptr dptr)
{
	struct device *device = dptr ? device_owning(dptr) : NULL;
	struct allocation *allocation = device ? memory_claim(device, dptr) : NULL;
	CUresult result;

	(void)variant;
	if (!allocation && dptr && device_of(dptr))
		return CUDA_ERROR_INVALID_VALUE; /* what it finds there need not be the program's */
	if (!allocation)
		return driver.cuMemFree_v2(dptr);
	if (!allocation->chunks)
		return free_direct(device, allocation, dptr);
	pthread_mutex_lock(&device->allocate);
	ordered_reclaim(device, false);
	/* As the driver's: what uses it is over before it is gone. */
	result = memory_synchronize(device);
	/* In a capture the driver frees nothing either. After any other error nothing runs on. */
	if (result >= CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED &&
	    result <= CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
		unclaim(device, allocation);
	else
		memory_take_apart(device, allocation);
	pthread_mutex_unlock(&device->allocate);
	return result;
}

/* VRAM that the driver has left, of that device; whichever context is current. */
static uint64_t driver_has(struct device *device)
{
	size_t available = 0, total;
	CUcontext current;

	if (driver.cuCtxGetCurrent(&current))
		return 0;
	if (current != device->context)
		driver.cuCtxSetCurrent(device->context);
	if (driver.cuMemGetInfo_v2(&available, &total))
		available = 0;
	if (current != device->context)
		driver.cuCtxSetCurrent(current);
	return available;
}

bool memory_give_way(struct device *device, uint64_t bytes)
{
	uint64_t limit = device->limit, available = driver_has(device);
	uint32_t slots, fewer;
	bool gave;

	/* At least one, as what is left may be in pieces. */
	bytes = bytes > available ? bytes - available : 1;
	fewer = (uint32_t)((bytes + device->chunk - 1) / device->chunk);
	pthread_mutex_lock(&device->allocate);
	pthread_mutex_lock(&device->lock);
	slots = device->mover.slots_existing < device->slots_allowed ? device->mover.slots_existing
								     : device->slots_allowed;
	/* What a graph was made with cannot leave, and something must be able to. */
	gave = slots >= fewer && slots - fewer >= device->fixed + SLOTS_LEAST;
	pthread_mutex_unlock(&device->lock);
	if (gave) {
		device->limit = device->direct + (uint64_t)(slots - fewer) * device->chunk;
		gave = !set_slots(device, slots - fewer);
		if (!gave)
			device->limit = limit;
	}
	pthread_mutex_unlock(&device->allocate);
	return gave;
}
