// SPDX-License-Identifier: GPL-2.0-or-later
/* What the program creates to map it: its handles, and what is promised for it. */
#include <stdlib.h>

#include "device.h"
#include "memory.h"
#include "vmm.h"

/* Handles of ours. The driver's are addresses or small numbers; this is neither. */
#define HANDLE_MARK 0x6762ull
#define HANDLE_MARK_SHIFT 48
#define HANDLE_GENERATION_SHIFT 32

/* A place in the table of handles. */
struct entry {
	struct creation *creation; /* NULL: free */
	uint16_t generation; /* so that a handle that is over is refused */
	uint32_t next; /* of the free ones, plus one */
};

static struct entry *entries;
static uint32_t entry_count, entry_free;

bool handle_is_ours(CUmemGenericAllocationHandle handle)
{
	return handle >> HANDLE_MARK_SHIFT == HANDLE_MARK;
}

static struct creation *creation_new(struct device *device, size_t bytes,
				     const CUmemAllocationProp *prop)
{
	struct creation *creation = malloc(sizeof(*creation));
	uint32_t at;

	if (creation && !entry_free) {
		uint32_t count = entry_count ? 2 * entry_count : 64;
		struct entry *grown = realloc(entries, count * sizeof(*grown));

		if (!grown) {
			free(creation);
			return NULL;
		}
		entries = grown;
		for (uint32_t i = count; i-- > entry_count;) {
			entries[i] = (struct entry){ .next = entry_free };
			entry_free = i + 1;
		}
		entry_count = count;
	}
	if (!creation)
		return NULL;
	at = entry_free - 1;
	entry_free = entries[at].next;
	entries[at].creation = creation;
	*creation = (struct creation){
		.handle = HANDLE_MARK << HANDLE_MARK_SHIFT |
			  (uint64_t)entries[at].generation << HANDLE_GENERATION_SHIFT | at,
		.device = device,
		.prop = *prop,
		.bytes = bytes,
		.held = 1,
	};
	return creation;
}

void creation_free(struct creation *creation)
{
	uint32_t at = (uint32_t)creation->handle;

	entries[at].creation = NULL;
	entries[at].generation++;
	entries[at].next = entry_free;
	entry_free = at + 1;
	free(creation);
}

struct creation *creation_of(CUmemGenericAllocationHandle handle)
{
	uint32_t at = (uint32_t)handle;
	struct creation *creation = at < entry_count ? entries[at].creation : NULL;

	return creation && creation->handle == handle && creation->held ? creation : NULL;
}

bool creation_alive(const struct creation *creation)
{
	return device_connected(creation->device->ordinal) == creation->device;
}

static void release_promise(struct creation *creation)
{
	/* With the device all that it was promised went. */
	if (!creation->promised || !creation_alive(creation))
		return;
	pthread_mutex_lock(&creation->device->allocate);
	account_release(creation->device, creation->bytes);
	pthread_mutex_unlock(&creation->device->allocate);
	creation->promised = false;
}

/* Programs ask for handles that they could share, and hardly ever share one. What they could not
 * have at all they must be told now. */
static bool shareable(int types, const CUmemAllocationProp *prop)
{
	static int granted;
	CUmemGenericAllocationHandle probe;
	CUresult result;
	bool known;

	pthread_mutex_lock(&vmm_lock);
	known = (granted & types) == types;
	pthread_mutex_unlock(&vmm_lock);
	if (known)
		return true;
	result = driver.cuMemCreate(&probe, VMM_UNIT, prop, 0);
	if (result)
		return result == CUDA_ERROR_OUT_OF_MEMORY;
	driver.cuMemRelease(probe);
	pthread_mutex_lock(&vmm_lock);
	granted |= types;
	pthread_mutex_unlock(&vmm_lock);
	return true;
}

/* The device whose VRAM it counts against, if it is not paged; NULL: none of ours. */
static struct device *counts(size_t size, const CUmemAllocationProp *prop, unsigned long long flags)
{
	struct device *device;

	if (!prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE || flags || !size || size % VMM_UNIT)
		return NULL;
	/* What other devices read of it (gpuDirectRDMACapable) is refused where they are told of
	 * it. */
	if (prop->win32HandleMetaData || prop->allocFlags.usage)
		return NULL;
	device = device_obtain();
	if (!device || device->ordinal != prop->location.id)
		device = device_ready(prop->location.id);
	if (device && prop->requestedHandleTypes && !shareable(prop->requestedHandleTypes, prop))
		return NULL;
	return device;
}

static CUresult promise(struct device *device, size_t size)
{
	CUresult result;

	pthread_mutex_lock(&device->allocate);
	ordered_reclaim(device, false);
	do {
		result = account_promise(device, size);
	} while (result == CUDA_ERROR_OUT_OF_MEMORY && ordered_reclaim(device, true));
	pthread_mutex_unlock(&device->allocate);
	return result;
}

CUresult hook_cuMemCreate(unsigned int variant, CUmemGenericAllocationHandle *handle, size_t size,
			  const CUmemAllocationProp *prop, unsigned long long flags)
{
	struct device *device = handle ? counts(size, prop, flags) : NULL;
	/* Slots are not. */
	bool compressible = prop && prop->allocFlags.compressionType;
	struct creation *creation;
	CUresult result;

	(void)variant;
	if (!device)
		return room_create(handle, size, prop, flags);
	pthread_mutex_lock(&vmm_lock);
	creation = creation_new(device, size, prop);
	result = CUDA_ERROR_OUT_OF_MEMORY;
	/* As smaller allocations are: direct, unless it comes to lie beside others. */
	if (creation && (compressible || size < device->chunk)) {
		result = direct_back(creation, compressible);
		creation->used = compressible;
	}
	if (creation && !compressible && result == CUDA_ERROR_OUT_OF_MEMORY) {
		result = promise(device, size);
		creation->promised = !result;
	}
	if (!result)
		*handle = creation->handle;
	else if (creation)
		creation_free(creation);
	pthread_mutex_unlock(&vmm_lock);
	/* There may be VRAM that is not ours to count. */
	if (compressible && result == CUDA_ERROR_OUT_OF_MEMORY)
		result = room_create(handle, size, prop, flags);
	return result;
}

/* The last handle is gone. In the lock. */
static CUresult drop(struct creation *creation)
{
	struct piece *piece = creation->piece;
	CUresult result;

	if (creation->backed) {
		if (creation->mappings)
			return CUDA_SUCCESS;
		result = direct_end(creation);
		creation_free(creation);
		return result;
	}
	if (piece && piece->mapped)
		return CUDA_SUCCESS;
	if (!piece) {
		release_promise(creation);
		creation_free(creation);
		return CUDA_SUCCESS;
	}
	result = creation_alive(creation) ? memory_synchronize(creation->device) : CUDA_SUCCESS;
	if (result >= CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED &&
	    result <= CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD) {
		creation->held++;
		return result;
	}
	piece_end(piece);
	return result;
}

CUresult hook_cuMemRelease(unsigned int variant, CUmemGenericAllocationHandle handle)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct creation *creation;

	(void)variant;
	if (!handle_is_ours(handle))
		return driver.cuMemRelease(handle);
	pthread_mutex_lock(&vmm_lock);
	creation = creation_of(handle);
	if (creation)
		result = --creation->held ? CUDA_SUCCESS : drop(creation);
	pthread_mutex_unlock(&vmm_lock);
	return result;
}

CUresult creation_back(struct creation *creation)
{
	CUresult result;

	/* What it was promised is not what it takes. */
	release_promise(creation);
	result = direct_back(creation, true);
	if (result)
		creation->promised = !promise(creation->device, creation->bytes);
	return result;
}

CUresult hook_cuMemGetAllocationPropertiesFromHandle(unsigned int variant,
						     CUmemAllocationProp *prop,
						     CUmemGenericAllocationHandle handle)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	const struct creation *creation;

	(void)variant;
	if (!handle_is_ours(handle))
		return driver.cuMemGetAllocationPropertiesFromHandle(prop, handle);
	pthread_mutex_lock(&vmm_lock);
	creation = prop ? creation_of(handle) : NULL;
	if (creation && creation->prop.allocFlags.compressionType) {
		/* Whether it is compressible only the driver knows. */
		result = driver.cuMemGetAllocationPropertiesFromHandle(prop, creation->real);
	} else if (creation) {
		*prop = creation->prop;
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&vmm_lock);
	return result;
}

/*
 * The driver's handle for one of ours, for what it alone can do: what is mapped nowhere yet becomes
 * its memory. types: as which it must have been created, 0: any.
 */
static CUresult real_of(CUmemGenericAllocationHandle *handle, int types, const char *what)
{
	struct creation *creation;
	CUresult result = CUDA_SUCCESS;

	if (!handle_is_ours(*handle))
		return CUDA_SUCCESS;
	pthread_mutex_lock(&vmm_lock);
	creation = creation_of(*handle);
	if (!creation || !creation_alive(creation))
		result = CUDA_ERROR_INVALID_VALUE;
	else if (creation->piece)
		result = vmm_refuse(what);
	else if ((creation->prop.requestedHandleTypes & types) != types)
		result = CUDA_ERROR_INVALID_VALUE;
	else if (!creation->backed)
		result = creation_back(creation);
	if (!result) {
		creation->used = true;
		*handle = creation->real;
	}
	pthread_mutex_unlock(&vmm_lock);
	return result;
}

CUresult hook_cuMemExportToShareableHandle(unsigned int variant, void *shareable,
					   CUmemGenericAllocationHandle handle, int type,
					   unsigned long long flags)
{
	CUresult result = real_of(&handle, type,
				  "sharing with other processes (cuMemExportToShareableHandle)");

	(void)variant;
	return result ? result
		      : driver.cuMemExportToShareableHandle(shareable, handle, type, flags);
}

CUresult hook_cuMulticastBindMem(unsigned int variant, CUmemGenericAllocationHandle multicast,
				 size_t multicast_offset, CUmemGenericAllocationHandle handle,
				 size_t offset, size_t size, unsigned long long flags)
{
	CUresult result = real_of(&handle, 0, "multicast (cuMulticastBindMem)");

	(void)variant;
	return result ? result
		      : driver.cuMulticastBindMem(multicast, multicast_offset, handle, offset, size,
						  flags);
}

void creations_forget(void)
{
	entries = NULL;
	entry_count = entry_free = 0;
}
