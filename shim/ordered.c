// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Stream-ordered allocation. Memory exists from the call on, which is earlier than
 * its stream asks for; what a stream frees ends when the stream has got there, and
 * the host does not wait for it. Memory of graphs, and of pools that promise more
 * than memory of this device alone, is the driver's.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "device.h"
#include "fork.h"
#include "in_place.h"
#include "log.h"
#include "memory.h"

#define POOLS 64

/* Pools that were made or changed by the program, as far as there is something to know of them. */
static struct {
	CUmemoryPool pool;
	CUdevice device;
	bool plain; /* memory of that device for this process alone */
} pools[POOLS];
static unsigned int pool_count;
static pthread_mutex_t pools_lock = PTHREAD_MUTEX_INITIALIZER;

/* In pools_lock. Of more than POOLS the rest are not plain. */
static void note_pool(CUmemoryPool pool, CUdevice device, bool plain)
{
	unsigned int i = 0;

	while (i < pool_count && pools[i].pool != pool)
		i++;
	if (i == POOLS)
		return;
	pools[i].pool = pool;
	pools[i].device = device;
	pools[i].plain = plain;
	if (i == pool_count)
		pool_count++;
}

CUresult hook_cuMemPoolCreate(unsigned int variant, CUmemoryPool *pool, const CUmemPoolProps *props)
{
	CUresult result = driver.cuMemPoolCreate(pool, props);

	(void)variant;
	if (result)
		return result;
	pthread_mutex_lock(&pools_lock);
	note_pool(*pool, props->location.id,
		  props->allocType == CU_MEM_ALLOCATION_TYPE_PINNED && !props->handleTypes &&
			  props->location.type == CU_MEM_LOCATION_TYPE_DEVICE && !props->maxSize &&
			  !props->usage);
	pthread_mutex_unlock(&pools_lock);
	return result;
}

CUresult hook_cuMemPoolDestroy(unsigned int variant, CUmemoryPool pool)
{
	(void)variant;
	pthread_mutex_lock(&pools_lock);
	for (unsigned int i = 0; i < pool_count; i++)
		if (pools[i].pool == pool)
			pools[i--] = pools[--pool_count];
	pthread_mutex_unlock(&pools_lock);
	return driver.cuMemPoolDestroy(pool);
}

/* Other devices are to use its memory: only the driver's can be. */
CUresult hook_cuMemPoolSetAccess(unsigned int variant, CUmemoryPool pool,
				 const CUmemAccessDesc *desc, size_t count)
{
	CUresult result = driver.cuMemPoolSetAccess(pool, desc, count);

	(void)variant;
	if (!result && device_wanted()) {
		pthread_mutex_lock(&pools_lock);
		note_pool(pool, -1, false);
		pthread_mutex_unlock(&pools_lock);
	}
	return result;
}

static bool is_plain(const struct device *device, CUmemoryPool pool)
{
	CUmemoryPool standard = NULL;
	unsigned int i = 0;
	bool plain, known;

	pthread_mutex_lock(&pools_lock);
	while (i < pool_count && pools[i].pool != pool)
		i++;
	known = i < pool_count;
	plain = known && pools[i].plain && pools[i].device == device->ordinal;
	pthread_mutex_unlock(&pools_lock);
	if (known)
		return plain;
	return !driver.cuDeviceGetDefaultMemPool(&standard, device->ordinal) && standard == pool;
}

static bool capturing(CUstream stream, unsigned int variant)
{
	return driver_capture_status(stream, variant) != CU_STREAM_CAPTURE_STATUS_NONE;
}

CUresult hook_cuMemAllocAsync(unsigned int variant, CUdeviceptr *dptr, size_t bytes,
			      CUstream stream)
{
	struct device *device = device_obtain();
	CUmemoryPool pool = NULL;
	CUresult result;

	if (device && dptr && bytes >= device->chunk && !capturing(stream, variant) &&
	    !driver.cuDeviceGetMemPool(&pool, device->ordinal) && is_plain(device, pool))
		return memory_allocate(device, dptr, bytes);
	result = driver.cuMemAllocAsync[variant](dptr, bytes, stream);
	if (result == CUDA_ERROR_OUT_OF_MEMORY && device && memory_give_way(device, bytes))
		result = driver.cuMemAllocAsync[variant](dptr, bytes, stream);
	return result;
}

CUresult hook_cuMemAllocFromPoolAsync(unsigned int variant, CUdeviceptr *dptr, size_t bytes,
				      CUmemoryPool pool, CUstream stream)
{
	struct device *device = device_obtain();
	CUresult result;

	if (device && dptr && bytes >= device->chunk && !capturing(stream, variant) &&
	    is_plain(device, pool))
		return memory_allocate(device, dptr, bytes);
	result = driver.cuMemAllocFromPoolAsync[variant](dptr, bytes, pool, stream);
	if (result == CUDA_ERROR_OUT_OF_MEMORY && device && memory_give_way(device, bytes))
		result = driver.cuMemAllocFromPoolAsync[variant](dptr, bytes, pool, stream);
	return result;
}

bool ordered_reclaim(struct device *device, bool wait)
{
	struct freed **link = &device->freed, *freed;
	bool any = false;

	while ((freed = *link)) {
		/* Of those not done with one is waited for at a time; the next may not be needed.
		 */
		if ((!ticket_poll(freed->ticket) && (!wait || any || ticket_wait(freed->ticket))) ||
		    in_place_free_waits(device, freed->allocation)) {
			link = &freed->next;
			continue;
		}
		*link = freed->next;
		ticket_put(freed->ticket);
		memory_take_apart(device, freed->allocation);
		free(freed);
		any = true;
	}
	return any;
}

/* What is freed is used by the stream up to here, and by others only before it. */
static void free_behind(struct device *device, struct allocation *allocation, CUstream stream,
			unsigned int variant)
{
	struct freed *freed = malloc(sizeof(*freed)), **link;
	struct ticket *ticket = freed ? ticket_record(stream, variant) : NULL;

	if (!ticket)
		driver.cuStreamSynchronize[variant](stream);
	pthread_mutex_lock(&device->allocate);
	if (freed) {
		*freed = (struct freed){ .allocation = allocation, .ticket = ticket };
		for (link = &device->freed; *link; link = &(*link)->next)
			;
		*link = freed;
	} else {
		memory_take_apart(device, allocation);
	}
	ordered_reclaim(device, false);
	pthread_mutex_unlock(&device->allocate);
}

CUresult hook_cuMemFreeAsync(unsigned int variant, CUdeviceptr dptr, CUstream stream)
{
	struct device *device = dptr ? device_owning(dptr) : NULL;
	struct allocation *allocation;

	if (!device)
		return driver.cuMemFreeAsync[variant](dptr, stream);
	if (capturing(stream, variant)) {
		log_warn("cuMemFreeAsync in a capture: only of memory that was allocated in it");
		return CUDA_ERROR_NOT_SUPPORTED;
	}
	if (!device_of(dptr))
		return hook_cuMemFree_v2(0, dptr); /* direct: the driver waits for what uses it */
	allocation = memory_claim(device, dptr);
	if (!allocation)
		return CUDA_ERROR_INVALID_VALUE;
	free_behind(device, allocation, stream, variant);
	return CUDA_SUCCESS;
}

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_mutex_init(&pools_lock, NULL);
	pool_count = 0;
}

IN_EVERY_CHILD(in_child)
