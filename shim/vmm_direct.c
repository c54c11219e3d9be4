// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What of the program's own mappings is the driver's memory. It counts beside the slots, as
 * other direct allocations do, for as long as it is held or mapped.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "memory.h"
#include "vmm.h"

struct mapping {
	CUdeviceptr address;
	struct creation *creation;
};

static struct mapping *mappings; /* sorted */
static uint32_t mapping_count, mapping_room;

/* The number of mappings that begin below the address. */
static uint32_t rank(CUdeviceptr address)
{
	uint32_t low = 0, high = mapping_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (mappings[middle].address < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

CUresult direct_back(struct creation *creation, bool must)
{
	struct device *device = creation->device;
	CUresult result;

	pthread_mutex_lock(&device->allocate);
	result = memory_take_direct(device, creation->bytes, must);
	pthread_mutex_unlock(&device->allocate);
	if (result)
		return result;
	result = must ? room_create(&creation->real, creation->bytes, &creation->prop, 0)
		      : driver.cuMemCreate(&creation->real, creation->bytes, &creation->prop, 0);
	creation->backed = !result;
	if (result) {
		pthread_mutex_lock(&device->allocate);
		memory_give_direct(device, creation->bytes);
		pthread_mutex_unlock(&device->allocate);
	}
	return result;
}

CUresult direct_end(struct creation *creation)
{
	struct device *device = creation->device;
	CUresult result = driver.cuMemRelease(creation->real);

	creation->backed = false;
	if (!creation_alive(creation))
		return CUDA_SUCCESS;
	pthread_mutex_lock(&device->allocate);
	memory_give_direct(device, creation->bytes);
	pthread_mutex_unlock(&device->allocate);
	return result;
}

CUresult direct_map(struct creation *creation, CUdeviceptr address)
{
	uint32_t at = rank(address);
	CUresult result;

	if (mapping_count == mapping_room) {
		uint32_t room = mapping_room ? 2 * mapping_room : 16;
		struct mapping *grown = realloc(mappings, room * sizeof(*grown));

		if (!grown)
			return CUDA_ERROR_OUT_OF_MEMORY;
		mappings = grown;
		mapping_room = room;
	}
	result = driver.cuMemMap(address, creation->bytes, 0, creation->real, 0);
	if (result)
		return result;
	memmove(mappings + at + 1, mappings + at, (mapping_count - at) * sizeof(*mappings));
	mappings[at] = (struct mapping){ address, creation };
	mapping_count++;
	creation->mappings++;
	return CUDA_SUCCESS;
}

CUresult direct_unmap(CUdeviceptr address, size_t bytes)
{
	CUresult result = driver.cuMemUnmap(address, bytes);
	uint32_t from = rank(address), to = from;

	if (result)
		return result;
	while (to < mapping_count && mappings[to].address - address < bytes) {
		struct creation *creation = mappings[to++].creation;

		if (--creation->mappings || creation->held)
			continue;
		direct_end(creation);
		creation_free(creation);
	}
	memmove(mappings + from, mappings + to, (mapping_count - to) * sizeof(*mappings));
	mapping_count -= to - from;
	return CUDA_SUCCESS;
}

struct creation *direct_at(CUdeviceptr address)
{
	uint32_t after = rank(address + 1);
	const struct mapping *mapping = after ? &mappings[after - 1] : NULL;

	return mapping && address - mapping->address < mapping->creation->bytes ? mapping->creation
										: NULL;
}

void direct_forget(void)
{
	mapping_count = 0;
}
