// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "vram.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "settings.h"

/* A run of bytes in a memfd. */
struct extent {
	size_t offset, bytes;
};

struct vram_block {
	atomic_uint refs;
	int device;
	size_t bytes;
	size_t count;
	struct extent extents[];
};

/* One device's memory. */
struct vram {
	int fd;
	size_t bytes;
	pthread_mutex_t lock;
	struct extent *free; /* by offset, never touching one another; lock */
	size_t count, room; /* lock */
	size_t free_bytes; /* lock */
};

static struct vram vrams[MAX_DEVICES];

CUresult vram_init(int devices, size_t bytes)
{
	bytes -= bytes % VRAM_UNIT;
	for (int i = 0; i < devices; i++) {
		struct vram *vram = &vrams[i];

		vram->room = 64;
		vram->free = calloc(vram->room, sizeof *vram->free);
		vram->fd = memfd_create("softcuda-vram", MFD_CLOEXEC);
		if (!vram->free || vram->fd < 0 || ftruncate(vram->fd, (off_t)bytes))
			return CUDA_ERROR_OUT_OF_MEMORY;
		pthread_mutex_init(&vram->lock, NULL);
		vram->free[0] = (struct extent){ 0, bytes };
		vram->count = 1;
		vram->bytes = vram->free_bytes = bytes;
	}
	return CUDA_SUCCESS;
}

static void remove_free(struct vram *vram, size_t index)
{
	vram->count--;
	memmove(vram->free + index, vram->free + index + 1,
		(vram->count - index) * sizeof *vram->free);
}

/* Takes up to bytes from the front of a free extent. */
static struct extent take(struct vram *vram, size_t index, size_t bytes)
{
	struct extent *free = &vram->free[index];
	struct extent taken = { free->offset, bytes < free->bytes ? bytes : free->bytes };

	free->offset += taken.bytes;
	free->bytes -= taken.bytes;
	vram->free_bytes -= taken.bytes;
	if (!free->bytes)
		remove_free(vram, index);
	return taken;
}

/* The first extent that holds bytes, else the largest one: few pieces mean few mappings. */
static size_t best_fit(const struct vram *vram, size_t bytes)
{
	size_t largest = 0;

	for (size_t i = 0; i < vram->count; i++) {
		if (vram->free[i].bytes >= bytes)
			return i;
		if (vram->free[i].bytes > vram->free[largest].bytes)
			largest = i;
	}
	return largest;
}

/*
 * Gives an extent back and joins it to its neighbours. There is always room:
 * take_block made it before it split anything.
 */
static void give(struct vram *vram, struct extent extent)
{
	size_t i = 0;

	while (i < vram->count && vram->free[i].offset < extent.offset)
		i++;
	vram->free_bytes += extent.bytes;
	if (i < vram->count && extent.offset + extent.bytes == vram->free[i].offset) {
		extent.bytes += vram->free[i].bytes;
		remove_free(vram, i);
	}
	if (i > 0 && vram->free[i - 1].offset + vram->free[i - 1].bytes == extent.offset) {
		vram->free[i - 1].bytes += extent.bytes;
		return;
	}
	memmove(vram->free + i + 1, vram->free + i, (vram->count - i) * sizeof *vram->free);
	vram->free[i] = extent;
	vram->count++;
}

/*
 * Every block in use can split the free memory once more for each of its
 * extents when it goes; make the room now, where failing is possible.
 */
static bool reserve_room(struct vram *vram, size_t extents)
{
	size_t room = vram->room + extents;
	struct extent *free = realloc(vram->free, room * sizeof *free);

	if (!free)
		return false;
	vram->free = free;
	vram->room = room;
	return true;
}

static struct vram_block *take_block(struct vram *vram, size_t bytes)
{
	struct vram_block *block;
	size_t pieces = 0, sum = 0;

	/* An upper bound: pieces are taken whole, largest first, except the last. */
	for (; pieces < vram->count && sum < bytes; pieces++)
		sum += vram->free[pieces].bytes;
	block = malloc(sizeof *block + pieces * sizeof *block->extents);
	if (!block || !reserve_room(vram, pieces)) {
		free(block);
		return NULL;
	}
	atomic_init(&block->refs, 1);
	block->bytes = bytes;
	block->count = 0;
	for (size_t left = bytes; left; left -= block->extents[block->count++].bytes)
		block->extents[block->count] = take(vram, best_fit(vram, left), left);
	vram->room -= pieces - block->count;
	return block;
}

/* 0xff bytes are a NaN in every floating-point format and no likely index or address. */
static void poison(const struct vram *vram, const struct vram_block *block)
{
	static const unsigned char pattern[] = { [0 ... 65535] = 0xff };

	for (size_t i = 0; i < block->count; i++)
		for (size_t done = 0; done < block->extents[i].bytes; done += sizeof pattern)
			if (pwrite(vram->fd, pattern, sizeof pattern,
				   (off_t)(block->extents[i].offset + done)) < 0)
				return;
}

CUresult vram_alloc(int device, size_t bytes, struct vram_block **block)
{
	struct vram *vram = &vrams[device];

	*block = NULL;
	pthread_mutex_lock(&vram->lock);
	if (bytes && bytes <= vram->free_bytes)
		*block = take_block(vram, bytes);
	pthread_mutex_unlock(&vram->lock);
	if (!*block)
		return CUDA_ERROR_OUT_OF_MEMORY;
	(*block)->device = device;
	if (settings.poison)
		poison(vram, *block);
	return CUDA_SUCCESS;
}

struct vram_block *vram_get(struct vram_block *block)
{
	atomic_fetch_add(&block->refs, 1);
	return block;
}

void vram_put(struct vram_block *block)
{
	struct vram *vram = &vrams[block->device];

	if (atomic_fetch_sub(&block->refs, 1) != 1)
		return;
	pthread_mutex_lock(&vram->lock);
	for (size_t i = 0; i < block->count; i++)
		give(vram, block->extents[i]);
	/* The room that take_block kept for this. */
	vram->room -= block->count;
	pthread_mutex_unlock(&vram->lock);
	free(block);
}

size_t vram_block_bytes(const struct vram_block *block)
{
	return block->bytes;
}

int vram_block_device(const struct vram_block *block)
{
	return block->device;
}

bool vram_map(const struct vram_block *block, uintptr_t address, size_t bytes, int protection)
{
	for (size_t i = 0; bytes; i++) {
		const struct extent *extent = &block->extents[i];
		size_t part = bytes < extent->bytes ? bytes : extent->bytes;

		if (mmap((void *)address, part, protection, MAP_SHARED | MAP_FIXED,
			 vrams[block->device].fd, (off_t)extent->offset) == MAP_FAILED)
			return false;
		address += part;
		bytes -= part;
	}
	return true;
}

void vram_totals(int device, size_t *free, size_t *total)
{
	struct vram *vram = &vrams[device];

	pthread_mutex_lock(&vram->lock);
	*free = vram->free_bytes;
	pthread_mutex_unlock(&vram->lock);
	*total = vram->bytes;
}
