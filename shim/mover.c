// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "mover.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "address.h"
#include "log.h"

#define PAGE ((size_t)4096)
#define HUGE_PAGE ((size_t)2 << 20)

CUresult mover_init(struct mover *mover, CUdevice device, CUcontext context, size_t chunk,
		    uint32_t slots)
{
	CUresult result;

	mover->device = device;
	mover->context = context;
	mover->chunk = chunk;
	mover->slots = slots;
	mover->vram = calloc(slots, sizeof(*mover->vram));
	mover->arenas = calloc(MAX_ARENAS, sizeof(*mover->arenas));
	if (!mover->vram || !mover->arenas)
		return CUDA_ERROR_OUT_OF_MEMORY;
	for (uint32_t i = 0; i < slots; i++)
		mover->vram[i].chunk = NO_SLOT;
	for (uint32_t i = 0; i < MAX_ARENAS; i++)
		mover->arenas[i].fd = -1;
	result = driver.cuStreamCreate(&mover->up, CU_STREAM_NON_BLOCKING);
	if (result == CUDA_SUCCESS)
		result = driver.cuStreamCreate(&mover->down, CU_STREAM_NON_BLOCKING);
	if (result == CUDA_SUCCESS)
		result = driver.cuStreamCreate(&mover->join, CU_STREAM_NON_BLOCKING);
	if (result == CUDA_SUCCESS)
		result = driver.cuMemAddressReserve(&mover->alias, slots * chunk, chunk, 0, 0);
	return result;
}

static CUresult map_at(struct mover *mover, CUdeviceptr address,
		       CUmemGenericAllocationHandle handle)
{
	const CUmemAccessDesc access = {
		.location = { CU_MEM_LOCATION_TYPE_DEVICE, mover->device },
		.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
	};
	CUresult result = driver.cuMemMap(address, mover->chunk, 0, handle, 0);

	if (result)
		return result;
	result = driver.cuMemSetAccess(address, mover->chunk, &access, 1);
	if (result)
		driver.cuMemUnmap(address, mover->chunk);
	return result;
}

CUresult mover_create_slot(struct mover *mover, uint32_t slot)
{
	const CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.location = { CU_MEM_LOCATION_TYPE_DEVICE, mover->device },
	};
	struct vram_slot *s = &mover->vram[slot];
	CUresult result = driver.cuMemCreate(&s->handle, mover->chunk, &prop, 0);

	if (result)
		return result;
	result = map_at(mover, mover->alias + slot * mover->chunk, s->handle);
	if (result) {
		driver.cuMemRelease(s->handle);
		return result;
	}
	s->exists = true;
	mover->slots_existing++;
	return CUDA_SUCCESS;
}

CUresult mover_destroy_slot(struct mover *mover, uint32_t slot)
{
	struct vram_slot *s = &mover->vram[slot];
	CUresult result = ticket_wait(s->busy);

	ticket_put(s->busy);
	s->busy = NULL;
	if (result == CUDA_SUCCESS)
		result = driver.cuMemUnmap(mover->alias + slot * mover->chunk, mover->chunk);
	if (result == CUDA_SUCCESS)
		result = driver.cuMemRelease(s->handle);
	s->exists = false;
	mover->slots_existing--;
	return result;
}

CUresult mover_reserve(struct mover *mover, CUdeviceptr *base, uint64_t chunks)
{
	return address_reserve(base, chunks * mover->chunk, mover->chunk);
}

void mover_unreserve(struct mover *mover, CUdeviceptr base, uint64_t chunks)
{
	driver.cuMemAddressFree(base, chunks * mover->chunk);
}

CUresult mover_map(struct mover *mover, CUdeviceptr address, uint32_t slot)
{
	return map_at(mover, address, mover->vram[slot].handle);
}

CUresult mover_unmap(struct mover *mover, CUdeviceptr address)
{
	return driver.cuMemUnmap(address, mover->chunk);
}

/* As the driver leaves the pages of what is reserved. */
static void clear(struct mover *mover, CUdeviceptr address)
{
	mmap((void *)address, mover->chunk, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

/*
 * Inside of what is reserved: registered memory is at its own address for the device, too,
 * and the driver reserves the pages of the process that go with its addresses.
 */
CUresult mover_map_ram(struct mover *mover, CUdeviceptr address, struct ram_place place)
{
	const struct arena *arena = &mover->arenas[place.arena];
	CUresult result;

	if (mmap((void *)address, mover->chunk, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED | MAP_POPULATE, arena->fd,
		 (off_t)(place.slot * mover->chunk)) == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = driver.cuMemHostRegister_v2((void *)address, mover->chunk,
					     CU_MEMHOSTREGISTER_PORTABLE |
						     CU_MEMHOSTREGISTER_DEVICEMAP);
	if (result)
		clear(mover, address);
	return result;
}

CUresult mover_unmap_ram(struct mover *mover, CUdeviceptr address)
{
	CUresult result = driver.cuMemHostUnregister((void *)address);

	clear(mover, address);
	return result;
}

unsigned char *mover_ram(struct mover *mover, struct ram_place place)
{
	return mover->arenas[place.arena].base + place.slot * mover->chunk;
}

struct ram_slot *mover_ram_slot(struct mover *mover, struct ram_place place)
{
	return &mover->arenas[place.arena].slot[place.slot];
}

struct ticket *mover_copy_up(struct mover *mover, struct ram_place from, uint32_t to,
			     struct span_of_time *time)
{
	if (ticket_wait_on(mover->vram[to].busy, mover->up, 0) ||
	    ticket_wait_on(mover_ram_slot(mover, from)->busy, mover->up, 0))
		return NULL;
	if (time)
		time->before = timing_mark(&mover->timing, mover->up, 0);
	if (driver.cuMemcpyHtoDAsync_v2[0](mover->alias + to * mover->chunk, mover_ram(mover, from),
					   mover->chunk, mover->up))
		return NULL;
	if (time)
		time->after = timing_mark(&mover->timing, mover->up, 0);
	return ticket_record(mover->up, 0);
}

struct ticket *mover_copy_down(struct mover *mover, uint32_t from, struct ram_place to,
			       struct span_of_time *time)
{
	if (ticket_wait_on(mover->vram[from].busy, mover->down, 0) ||
	    ticket_wait_on(mover_ram_slot(mover, to)->busy, mover->down, 0))
		return NULL;
	if (time)
		time->before = timing_mark(&mover->timing, mover->down, 0);
	if (driver.cuMemcpyDtoHAsync_v2[0](mover_ram(mover, to), mover->alias + from * mover->chunk,
					   mover->chunk, mover->down))
		return NULL;
	if (time)
		time->after = timing_mark(&mover->timing, mover->down, 0);
	return ticket_record(mover->down, 0);
}

void mover_forget(struct mover *mover)
{
	for (uint32_t i = 0; mover->arenas && i < MAX_ARENAS; i++)
		if (mover->arenas[i].fd >= 0)
			close(mover->arenas[i].fd);
}

/*
 * Where its huge pages can be mapped as such, which are registered several times as fast.
 * With its pages: the driver would populate it several times as slowly, while its other
 * calls wait.
 */
static void *map_arena(int fd, size_t bytes)
{
	size_t slack = HUGE_PAGE - PAGE, before;
	char *around = mmap(NULL, bytes + slack, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	void *base;

	if (around == MAP_FAILED)
		return MAP_FAILED;
	before = -(uintptr_t)around % HUGE_PAGE;
	/* If it fails, the place stays taken: older kernels have unmapped what was there, and by
	 * now another thread may have something in it. */
	base = mmap(around + before, bytes, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0);
	if (before)
		munmap(around, before);
	if (before < slack)
		munmap(around + before + bytes, slack - before);
	return base;
}

bool mover_open_arena(struct mover *mover, uint64_t id, int fd, size_t bytes, struct arena *arena)
{
	CUresult result;

	*arena = (struct arena){ .id = id, .slots = (uint32_t)(bytes / mover->chunk), .fd = -1 };
	if (arena->slots == 0 || arena->slots >= UINT16_MAX) {
		close(fd);
		return false;
	}
	arena->base = map_arena(fd, bytes);
	arena->fd = fd; /* from which its slots can be mapped anywhere */
	if (arena->base == MAP_FAILED) {
		close(fd);
		return false;
	}
	arena->slot = calloc(arena->slots, sizeof(*arena->slot));
	result = arena->slot ? driver.cuMemHostRegister_v2(arena->base, bytes,
							   CU_MEMHOSTREGISTER_PORTABLE)
			     : CUDA_ERROR_OUT_OF_MEMORY;
	if (result) {
		log_warn("cannot register %zu bytes of RAM with the GPU (%s); is the memlock limit "
			 "too low "
			 "(ulimit -l)?",
			 bytes, driver_error(result));
		free(arena->slot);
		munmap(arena->base, bytes);
		close(arena->fd);
		return false;
	}
	return true;
}

bool mover_add_arena(struct mover *mover, const struct arena *arena)
{
	uint32_t index;

	for (index = 0; index < mover->arena_count && mover->arenas[index].id; index++)
		;
	if (index == MAX_ARENAS)
		return false;
	mover->arenas[index] = *arena;
	if (index == mover->arena_count)
		mover->arena_count++;
	return true;
}

struct arena mover_remove_arena(struct mover *mover, uint32_t index)
{
	struct arena arena = mover->arenas[index];

	mover->arenas[index] = (struct arena){ .fd = -1 };
	return arena;
}

void mover_close_arena(struct mover *mover, struct arena *arena)
{
	for (uint32_t i = 0; i < arena->slots; i++) {
		ticket_wait(arena->slot[i].busy);
		ticket_put(arena->slot[i].busy);
	}
	driver.cuMemHostUnregister(arena->base);
	munmap(arena->base, arena->slots * mover->chunk);
	close(arena->fd);
	free(arena->slot);
}

struct ram_place mover_take_ram(struct mover *mover)
{
	for (uint32_t a = 0; a < mover->arena_count; a++) {
		struct arena *arena = &mover->arenas[a];

		if (!arena->id || arena->leaving || arena->used == arena->slots)
			continue;
		for (uint32_t i = 0; i < arena->slots; i++) {
			if (arena->slot[i].used)
				continue;
			arena->slot[i].used = true;
			arena->used++;
			return (struct ram_place){ (uint16_t)a, (uint16_t)i };
		}
	}
	return NO_RAM;
}

void mover_use_ram(struct mover *mover, struct ram_place place, struct ticket *busy)
{
	struct ram_slot *slot = mover_ram_slot(mover, place);

	ticket_put(slot->busy);
	slot->busy = busy;
}

void mover_put_ram(struct mover *mover, struct ram_place place)
{
	mover_ram_slot(mover, place)->used = false;
	mover->arenas[place.arena].used--;
}

void mover_count_ram(const struct mover *mover, uint32_t *slots, uint32_t *available)
{
	*slots = *available = 0;
	for (uint32_t a = 0; a < mover->arena_count; a++) {
		const struct arena *arena = &mover->arenas[a];

		if (arena->id && !arena->leaving) {
			*slots += arena->slots;
			*available += arena->slots - arena->used;
		}
	}
}
