// SPDX-License-Identifier: GPL-2.0-or-later
/* Virtual memory management: addresses, memory and what maps the one to the other, apart. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "api.gen.h"
#include "device.h"
#include "space.h"
#include "vram.h"

/* The place asked for is heeded at these multiples (driver 580.159.04; else it looks near it). */
#define HINT_UNIT ((size_t)32 << 20)

/* Memory of cuMemCreate: lives while it has handles or mappings. All under the space's lock. */
struct creation {
	struct vram_block *block; /* NULL: the entry is free */
	CUmemAllocationProp prop;
	size_t handles, mappings;
	uint32_t generation; /* of the entry; so that a stale handle is refused */
};

static struct creation *creations;
static size_t creation_room;

static bool aligned(uint64_t value)
{
	return !(value % VRAM_CREATE_UNIT);
}

static CUmemGenericAllocationHandle handle_of(const struct creation *creation)
{
	uint64_t index = (uint64_t)(creation - creations);

	return (uint64_t)creation->generation << 32 | (index + 1);
}

/* The memory behind a handle, whether or not the program has released it; NULL: none. */
static struct creation *creation_of(CUmemGenericAllocationHandle handle)
{
	uint64_t index = (handle & UINT32_MAX) - 1;

	if (index >= creation_room || !creations[index].block ||
	    creations[index].generation != handle >> 32)
		return NULL;
	return &creations[index];
}

static struct creation *held_creation(CUmemGenericAllocationHandle handle)
{
	struct creation *creation = creation_of(handle);

	return creation && creation->handles ? creation : NULL;
}

static struct creation *free_entry(void)
{
	size_t room = creation_room ? 2 * creation_room : 64;
	struct creation *grown;

	for (size_t i = 0; i < creation_room; i++)
		if (!creations[i].block)
			return &creations[i];
	grown = realloc(creations, room * sizeof *grown);
	if (!grown)
		return NULL;
	for (size_t i = creation_room; i < room; i++)
		grown[i] = (struct creation){ 0 };
	creations = grown;
	creation_room = room;
	return &creations[room / 2];
}

static void drop_unused(struct creation *creation)
{
	if (creation->handles || creation->mappings)
		return;
	vram_put(creation->block);
	creation->block = NULL;
	creation->generation++;
}

static CUresult check_prop(const CUmemAllocationProp *prop)
{
	if (!prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED)
		return CUDA_ERROR_INVALID_VALUE;
	if (prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
	    prop->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_NOT_SUPPORTED;
	return device_exists(prop->location.id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
					  int option)
{
	CUresult error = check_prop(prop);

	if (!granularity || (option != CU_MEM_ALLOC_GRANULARITY_MINIMUM &&
			     option != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED))
		return CUDA_ERROR_INVALID_VALUE;
	if (!error)
		*granularity = VRAM_CREATE_UNIT;
	return error;
}

CUresult do_cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr hint,
				unsigned long long flags)
{
	struct reservation *reservation;

	if (!ptr || !size || !aligned(size) || flags || alignment & (alignment - 1))
		return CUDA_ERROR_INVALID_VALUE;
	if (alignment < VRAM_CREATE_UNIT)
		alignment = VRAM_CREATE_UNIT;
	if (hint % HINT_UNIT)
		hint = 0;
	space_write_lock();
	reservation = space_reserve(size, alignment, hint);
	if (reservation) {
		reservation->user = true;
		*ptr = reservation->at.start;
	}
	space_unlock();
	return reservation ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuMemAddressFree(CUdeviceptr ptr, size_t size)
{
	CUresult error = CUDA_ERROR_INVALID_VALUE;
	struct reservation *reservation;

	space_write_lock();
	reservation = space_reservation(ptr, ptr + size);
	if (reservation && reservation->user && reservation->at.start == ptr &&
	    reservation->at.end == ptr + size && !space_overlaps(ptr, ptr + size)) {
		space_release(reservation);
		error = CUDA_SUCCESS;
	}
	space_unlock();
	return error;
}

CUresult do_cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
			const CUmemAllocationProp *prop, unsigned long long flags)
{
	CUresult error = check_prop(prop);
	struct creation *creation;
	struct vram_block *block;

	if (!handle || !size || !aligned(size) || flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (!error)
		error = vram_alloc(prop->location.id, size, &block);
	if (error)
		return error;
	space_write_lock();
	creation = free_entry();
	if (creation) {
		creation->block = block;
		creation->prop = *prop;
		creation->handles = 1;
		*handle = handle_of(creation);
	}
	space_unlock();
	if (creation)
		return CUDA_SUCCESS;
	vram_put(block);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuMemRelease(CUmemGenericAllocationHandle handle)
{
	struct creation *creation;

	space_write_lock();
	creation = held_creation(handle);
	if (creation) {
		creation->handles--;
		drop_unused(creation);
	}
	space_unlock();
	return creation ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
	CUresult error = CUDA_ERROR_INVALID_VALUE;
	struct span *span;

	if (!handle)
		return error;
	space_write_lock();
	span = space_at((uintptr_t)address);
	if (span && span->kind == SPAN_MAPPING) {
		creation_of(span->handle)->handles++;
		*handle = span->handle;
		error = CUDA_SUCCESS;
	}
	space_unlock();
	return error;
}

CUresult do_cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop,
						   CUmemGenericAllocationHandle handle)
{
	struct creation *creation;

	if (!prop)
		return CUDA_ERROR_INVALID_VALUE;
	space_read_lock();
	creation = held_creation(handle);
	if (creation)
		*prop = creation->prop;
	space_unlock();
	return creation ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult map(uintptr_t start, uintptr_t end, size_t offset,
		    CUmemGenericAllocationHandle handle)
{
	struct reservation *reservation = space_reservation(start, end);
	struct creation *creation = held_creation(handle);
	struct span *span;
	size_t bytes;

	if (!reservation || !reservation->user || space_overlaps(start, end))
		return CUDA_ERROR_INVALID_VALUE;
	if (!creation)
		return CUDA_ERROR_INVALID_VALUE;
	bytes = vram_block_bytes(creation->block);
	if (offset > bytes || end - start > bytes - offset)
		return CUDA_ERROR_INVALID_VALUE;
	/* A part of it: as the driver (580). */
	if (end - start < bytes)
		return CUDA_ERROR_NOT_SUPPORTED;
	span = span_new(SPAN_MAPPING, start, end - start);
	if (!span)
		return CUDA_ERROR_OUT_OF_MEMORY;
	span->handle = handle;
	span->device = creation->prop.location.id;
	if (!vram_map(creation->block, start, end - start, PROT_NONE) || !space_insert(span)) {
		space_close(start, end);
		free(span);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	creation->mappings++;
	return CUDA_SUCCESS;
}

CUresult do_cuMemMap(CUdeviceptr ptr, size_t size, size_t offset,
		     CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	CUresult error;

	if (!size || !aligned(size) || !aligned(ptr) || !aligned(offset) || flags ||
	    ptr + size < ptr)
		return CUDA_ERROR_INVALID_VALUE;
	space_write_lock();
	error = map(ptr, ptr + size, offset, handle);
	space_unlock();
	return error;
}

/* Whether a range is made of whole mappings. */
static bool whole_mappings(uintptr_t start, uintptr_t end)
{
	if (start >= end)
		return false;
	while (start < end) {
		struct span *span = space_at(start);

		if (!span || span->kind != SPAN_MAPPING || span->at.start != start)
			return false;
		start = span->at.end;
	}
	return start == end;
}

CUresult do_cuMemUnmap(CUdeviceptr ptr, size_t size)
{
	uintptr_t start = ptr, end = ptr + size;
	CUresult error = CUDA_ERROR_INVALID_VALUE;

	space_write_lock();
	if (whole_mappings(start, end)) {
		/* First the addresses, then the memory: nobody may see who has it next. */
		space_close(start, end);
		while (start < end) {
			struct span *span = space_at(start);
			struct creation *creation = creation_of(span->handle);

			start = span->at.end;
			space_remove(span);
			free(span);
			creation->mappings--;
			drop_unused(creation);
		}
		error = CUDA_SUCCESS;
	}
	space_unlock();
	return error;
}

static CUresult check_access(const CUmemAccessDesc *desc, size_t count)
{
	if (!desc || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++) {
		if (desc[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE)
			return CUDA_ERROR_NOT_SUPPORTED;
		if (!device_exists(desc[i].location.id))
			return CUDA_ERROR_INVALID_DEVICE;
		if (desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE &&
		    desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
		    desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
			return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

static CUresult apply_access(struct span *span)
{
	int access = span_access(span), protection = PROT_NONE;

	if (access & CU_MEM_ACCESS_FLAGS_PROT_READ)
		protection |= PROT_READ;
	if (access == CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
		protection |= PROT_WRITE;
	if (mprotect((void *)span->at.start, span->at.end - span->at.start, protection))
		return CUDA_ERROR_OUT_OF_MEMORY;
	return CUDA_SUCCESS;
}

CUresult do_cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count)
{
	uintptr_t start = ptr, end = ptr + size;
	CUresult error = check_access(desc, count);

	if (error)
		return error;
	space_write_lock();
	if (!whole_mappings(start, end))
		error = CUDA_ERROR_INVALID_VALUE;
	while (!error && start < end) {
		struct span *span = space_at(start);

		for (size_t i = 0; i < count; i++)
			span->access[desc[i].location.id] = (unsigned char)desc[i].flags;
		error = apply_access(span);
		start = span->at.end;
	}
	space_unlock();
	return error;
}

CUresult do_cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location,
			   CUdeviceptr ptr)
{
	CUresult error = CUDA_ERROR_INVALID_VALUE;
	struct span *span;

	if (!flags || !location || location->type != CU_MEM_LOCATION_TYPE_DEVICE)
		return error;
	if (!device_exists(location->id))
		return CUDA_ERROR_INVALID_DEVICE;
	space_read_lock();
	span = space_at(ptr);
	if (span && span->kind == SPAN_MAPPING) {
		*flags = span->access[location->id];
		error = CUDA_SUCCESS;
	}
	space_unlock();
	return error;
}

/* What a shared handle's file says. Only the process that made it can do anything with it. */
struct shared {
	CUmemGenericAllocationHandle handle;
	pid_t process;
};

CUresult do_cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
					 int type, unsigned long long flags)
{
	const struct shared shared = { .handle = handle, .process = getpid() };
	const struct creation *creation;
	int file;

	space_read_lock();
	creation = held_creation(handle);
	if (creation && (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
			 creation->prop.requestedHandleTypes != type))
		creation = NULL;
	space_unlock();
	if (!shareable || !creation || flags)
		return CUDA_ERROR_INVALID_VALUE;
	file = memfd_create("softcuda-shared", MFD_CLOEXEC);
	if (file < 0)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (write(file, &shared, sizeof shared) != sizeof shared) {
		close(file);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*(int *)shareable = file;
	return CUDA_SUCCESS;
}

CUresult do_cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
					   int type)
{
	struct creation *creation;
	struct shared shared;

	if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
	    pread((int)(intptr_t)shareable, &shared, sizeof shared, 0) != sizeof shared)
		return CUDA_ERROR_INVALID_VALUE;
	if (shared.process != getpid())
		return CUDA_ERROR_NOT_SUPPORTED;
	space_write_lock();
	creation = creation_of(shared.handle);
	if (creation) {
		creation->handles++;
		*handle = shared.handle;
	}
	space_unlock();
	return creation ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
