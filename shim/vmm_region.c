// SPDX-License-Identifier: GPL-2.0-or-later
/* Reservations of the program's: which is where, and what is mapped at an address. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device.h"
#include "memory.h"
#include "record.h"
#include "vmm.h"

static struct region **regions; /* sorted */
static uint32_t region_count, region_room;

/* ---- regions ---- */

/* The number of regions that begin at or below the address. */
static uint32_t rank(CUdeviceptr address)
{
	uint32_t low = 0, high = region_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (regions[middle]->base <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct region *region_new(struct region fresh)
{
	struct region *region = malloc(sizeof(*region));
	uint32_t at = rank(fresh.base);

	if (region && region_count == region_room) {
		uint32_t room = region_room ? 2 * region_room : 16;
		struct region **grown = realloc(regions, room * sizeof(*grown));

		if (!grown) {
			free(region);
			return NULL;
		}
		regions = grown;
		region_room = room;
	}
	if (!region)
		return NULL;
	*region = fresh;
	memmove(regions + at + 1, regions + at, (region_count - at) * sizeof(*regions));
	regions[at] = region;
	region_count++;
	return region;
}

static void forget(struct region *region)
{
	uint32_t at = rank(region->base) - 1;

	region_count--;
	memmove(regions + at, regions + at + 1, (region_count - at) * sizeof(*regions));
	free(region->fixed);
	free(region->pieces);
	free(region);
}

void region_add(CUdeviceptr base, uint64_t bytes, uint64_t reserved)
{
	uint32_t after;

	/* What is there yet is from before a reset: the driver gave its addresses anew. */
	while ((after = rank(base + reserved - 1)) &&
	       base < regions[after - 1]->base + regions[after - 1]->reserved) {
		struct region *stale = regions[after - 1];

		stale->over = false;
		region_clear(stale);
		if (stale->allocation)
			return;
		forget(stale);
	}
	region_new((struct region){ .base = base, .bytes = bytes, .reserved = reserved });
}

CUresult region_remove(struct region *region)
{
	CUresult result = driver.cuMemAddressFree(region->base, region->reserved);

	if (!result)
		forget(region);
	return result;
}

struct region *region_at(CUdeviceptr address)
{
	uint32_t after = rank(address);
	struct region *region = after ? regions[after - 1] : NULL;

	return region && address - region->base < region->reserved ? region : NULL;
}

void regions_forget(void)
{
	region_count = 0;
}

CUresult region_begin(struct region *region, struct device *device)
{
	uint64_t chunks = region->reserved / device->chunk;
	struct grain *grains = MAP_FAILED;
	struct allocation whole;
	uint32_t first = UINT32_MAX;

	if (chunks <= MEMORY_INDEXES) {
		pthread_mutex_lock(&device->lock);
		first = alloc_map_room(&device->map, (uint32_t)chunks, MEMORY_INDEXES);
		pthread_mutex_unlock(&device->lock);
	}
	if (first == UINT32_MAX)
		return CUDA_ERROR_NOT_FOUND;
	/* Reserved is often more than there is memory: not touched until it is used. */
	grains = mmap(NULL, chunks * sizeof(*grains), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (grains == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_lock(&device->lock);
	region->allocation =
		alloc_map_add_sparse(&device->map, region->base, first, (uint32_t)chunks);
	pthread_mutex_unlock(&device->lock);
	if (!region->allocation) {
		munmap(grains, chunks * sizeof(*grains));
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	/* What is where in it comes and goes: recorded are the addresses. */
	whole = *region->allocation;
	whole.bytes = region->reserved;
	record_allocation(device, &whole);
	region->grains = grains;
	region->device = device;
	return CUDA_SUCCESS;
}

void region_end(struct region *region)
{
	struct device *device = region->device;

	pthread_mutex_lock(&device->lock);
	region->allocation->leaving = true;
	pthread_mutex_unlock(&device->lock);
	residency_wait_unnamed(device, region->allocation);
	record_free(device, region->allocation);
	pthread_mutex_lock(&device->lock);
	alloc_map_remove(&device->map, region->allocation);
	pthread_mutex_unlock(&device->lock);
	munmap(region->grains, region_chunks(region) * sizeof(*region->grains));
	region->allocation = NULL;
	region->grains = NULL;
	region->device = NULL;
	if (region->over)
		region_remove(region);
}

/* ---- pieces ---- */

uint32_t region_rank(const struct region *region, uint64_t offset)
{
	uint32_t low = 0, high = region->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (region->pieces[middle]->offset <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct piece *region_piece(const struct region *region, CUdeviceptr address)
{
	uint64_t offset = address - region->base;
	uint32_t after = region_rank(region, offset);
	struct piece *piece = after ? region->pieces[after - 1] : NULL;

	return piece && offset - piece->offset < piece->bytes ? piece : NULL;
}

struct piece *region_overlap(const struct region *region, CUdeviceptr address, uint64_t bytes)
{
	struct piece *piece = region_piece(region, address);
	uint32_t after = region_rank(region, address - region->base);

	if (piece || after == region->count)
		return piece;
	piece = region->pieces[after];
	return piece->offset < address - region->base + bytes ? piece : NULL;
}

struct piece **region_range(const struct region *region, CUdeviceptr address, uint64_t bytes,
			    uint32_t *count)
{
	uint64_t at = address - region->base, end = at + bytes;
	uint32_t first = region_rank(region, at), i;

	if (!first || end <= at)
		return NULL;
	first--;
	for (i = first; i < region->count && at < end; i++) {
		const struct piece *piece = region->pieces[i];

		if (piece->offset != at || !piece->mapped)
			return NULL;
		at += piece->bytes;
	}
	*count = i - first;
	return at == end ? region->pieces + first : NULL;
}

void region_clear(struct region *region)
{
	struct device *device = region->device;

	if (!device || device_connected(device->ordinal) == device)
		return;
	free(region->fixed);
	region->fixed = NULL;
	/* From the end: with the last one perhaps the region goes. The pager of what was reset
	 * still takes apart. */
	for (uint32_t i = region->count; i-- > 0;)
		piece_end(region->pieces[i]);
}
