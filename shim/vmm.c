// SPDX-License-Identifier: GPL-2.0-or-later
/* Virtual memory management by the program: the calls. */
#define _GNU_SOURCE
#include "vmm.h"

#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "fork.h"
#include "log.h"
#include "memory.h"

/* Handles of ours. The driver's are addresses or small numbers; this is neither. */
#define HANDLE_MARK 0x6762ull
#define HANDLE_MARK_SHIFT 48
#define HANDLE_GENERATION_SHIFT 32

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* A place in the table of handles. */
struct entry {
	struct creation *creation; /* NULL: free */
	uint16_t generation; /* so that a handle that is over is refused */
	uint32_t next; /* of the free ones, plus one */
};

static struct entry *entries;
static uint32_t entry_count, entry_free;

static bool is_ours(CUmemGenericAllocationHandle handle)
{
	return handle >> HANDLE_MARK_SHIFT == HANDLE_MARK;
}

static CUresult refuse(const char *what)
{
	log_warn("%s: not of memory that GreenBoost moves", what);
	return CUDA_ERROR_NOT_SUPPORTED;
}

/* ---- creations ---- */

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

/* What a handle is of that the program has; NULL: it has none such. */
static struct creation *creation_of(CUmemGenericAllocationHandle handle)
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

	pthread_mutex_lock(&lock);
	known = (granted & types) == types;
	pthread_mutex_unlock(&lock);
	if (known)
		return true;
	result = driver.cuMemCreate(&probe, VMM_UNIT, prop, 0);
	if (result)
		return result == CUDA_ERROR_OUT_OF_MEMORY;
	driver.cuMemRelease(probe);
	pthread_mutex_lock(&lock);
	granted |= types;
	pthread_mutex_unlock(&lock);
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
	pthread_mutex_lock(&lock);
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
	pthread_mutex_unlock(&lock);
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
	if (!is_ours(handle))
		return driver.cuMemRelease(handle);
	pthread_mutex_lock(&lock);
	creation = creation_of(handle);
	if (creation)
		result = --creation->held ? CUDA_SUCCESS : drop(creation);
	pthread_mutex_unlock(&lock);
	return result;
}

/* ---- addresses ---- */

/* Of the devices that page, which all have the same; 0: there is none. */
static size_t chunk_size(void)
{
	struct device *device = device_obtain();

	for (CUdevice i = 0; !device && i < MAX_DEVICES; i++)
		device = device_connected(i);
	return device ? device->chunk : 0;
}

CUresult hook_cuMemAddressReserve(unsigned int variant, CUdeviceptr *ptr, size_t size,
				  size_t alignment, CUdeviceptr hint, unsigned long long flags)
{
	size_t chunk = chunk_size(), whole;

	(void)variant;
	if (!chunk || size < chunk || size % VMM_UNIT || size > SIZE_MAX - chunk)
		return driver.cuMemAddressReserve(ptr, size, alignment, hint, flags);
	/* VRAM is mapped by whole chunks, the last one too. */
	whole = (size + chunk - 1) / chunk * chunk;
	if (driver.cuMemAddressReserve(ptr, whole, alignment, hint, flags))
		return driver.cuMemAddressReserve(ptr, size, alignment, hint, flags);
	pthread_mutex_lock(&lock);
	region_add(*ptr, size, whole);
	pthread_mutex_unlock(&lock);
	return CUDA_SUCCESS;
}

static bool any_mapped(const struct region *region)
{
	for (uint32_t i = 0; i < region->count; i++)
		if (region->pieces[i]->mapped)
			return true;
	return false;
}

CUresult hook_cuMemAddressFree(unsigned int variant, CUdeviceptr ptr, size_t size)
{
	CUresult result = CUDA_SUCCESS;
	struct region *region;

	(void)variant;
	pthread_mutex_lock(&lock);
	region = region_at(ptr);
	if (region && !region->over)
		region_clear(region);
	if (!region || region->over)
		result = driver.cuMemAddressFree(ptr, size);
	else if (ptr != region->base || size != region->bytes || any_mapped(region))
		result = CUDA_ERROR_INVALID_VALUE;
	else if (region->count)
		region->over = true;
	else
		result = region_remove(region);
	pthread_mutex_unlock(&lock);
	return result;
}

/* ---- mappings ---- */

/* It is to be the driver's, having been promised. */
static CUresult back(struct creation *creation)
{
	CUresult result;

	/* What it was promised is not what it takes. */
	release_promise(creation);
	result = direct_back(creation, true);
	if (result)
		creation->promised = !promise(creation->device, creation->bytes);
	return result;
}

static CUresult map_direct(struct creation *creation, CUdeviceptr ptr)
{
	CUresult result = CUDA_SUCCESS;

	if (creation->piece) {
		log_warn("cuMemMap of %zu bytes of memory that moves, which it cannot at these "
			 "addresses: they are fewer than a chunk, or beside mappings of the "
			 "driver's",
			 creation->bytes);
		return CUDA_ERROR_NOT_SUPPORTED;
	}
	if (!creation->backed)
		result = back(creation);
	if (result)
		return result;
	creation->used = true;
	return direct_map(creation, ptr);
}

/* What the program holds but has unmapped leaves the addresses. */
static CUresult make_way(struct region *region, CUdeviceptr ptr, uint64_t bytes,
			 const struct creation *creation)
{
	CUresult result = CUDA_SUCCESS;
	struct piece *piece;

	while (!result && (piece = region_overlap(region, ptr, bytes))) {
		if (piece->mapped)
			return CUDA_ERROR_INVALID_VALUE;
		if (piece->creation == creation && region->base + piece->offset == ptr)
			break; /* comes back to where it was */
		result = piece_displace(piece);
	}
	return result;
}

static CUresult map_paged(struct region *region, struct creation *creation, CUdeviceptr ptr)
{
	struct device *device = creation->device;
	uint64_t offset = ptr - region->base;
	CUresult result;

	if (ptr % VMM_UNIT || offset > region->bytes || creation->bytes > region->bytes - offset)
		return CUDA_ERROR_INVALID_VALUE;
	if (region->device && region->device != device)
		return refuse("memory of two GPUs in one reservation (cuMemMap)");
	if (creation->backed && creation->used)
		return refuse("memory of the driver's, as it is compressible or was mapped in a "
			      "smaller reservation first (cuMemMap),");
	if (creation->piece && creation->piece->mapped)
		return refuse("a second mapping of the same memory (cuMemMap)");
	result = make_way(region, ptr, creation->bytes, creation);
	if (!result)
		result = piece_map(region, creation, offset);
	if (result == CUDA_ERROR_NOT_FOUND) {
		region->direct = true;
		return map_direct(creation, ptr);
	}
	if (!result && creation->backed)
		direct_end(creation);
	return result;
}

static CUresult map(CUdeviceptr ptr, size_t size, size_t offset,
		    CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	struct region *region = region_at(ptr);
	struct creation *creation;

	if (region && region->over)
		return CUDA_ERROR_INVALID_VALUE;
	if (region)
		region_clear(region);
	if (!is_ours(handle)) {
		if (region && region->allocation)
			return refuse("other memory beside it in one reservation (cuMemMap)");
		if (region)
			region->direct = true;
		return driver.cuMemMap(ptr, size, offset, handle, flags);
	}
	creation = creation_of(handle);
	if (!creation || !creation_alive(creation) || flags || !size || offset > creation->bytes ||
	    size > creation->bytes - offset)
		return CUDA_ERROR_INVALID_VALUE;
	/* Nor can the driver's be mapped in parts. */
	if (size != creation->bytes)
		return CUDA_ERROR_NOT_SUPPORTED;
	/* The first decides: allocators put alike sizes side by side. */
	if (region && !region->allocation && (creation->backed || region->direct))
		region->direct = true;
	return !region || region->direct ? map_direct(creation, ptr)
					 : map_paged(region, creation, ptr);
}

CUresult hook_cuMemMap(unsigned int variant, CUdeviceptr ptr, size_t size, size_t offset,
		       CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	CUresult result;

	(void)variant;
	pthread_mutex_lock(&lock);
	result = map(ptr, size, offset, handle, flags);
	pthread_mutex_unlock(&lock);
	return result;
}

/* In the lock. */
static CUresult unmap(struct region *region, CUdeviceptr ptr, size_t size)
{
	uint32_t count, at;
	struct piece **pieces = region_range(region, ptr, size, &count);
	CUresult result = CUDA_SUCCESS;
	bool ends = false;

	if (!pieces)
		return CUDA_ERROR_INVALID_VALUE;
	for (uint32_t i = 0; i < count; i++)
		ends = ends || !pieces[i]->creation->held;
	if (ends)
		result = memory_synchronize(region->device);
	if (result >= CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED &&
	    result <= CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
		return result;
	at = (uint32_t)(pieces - region->pieces);
	/* From the end: what ends leaves the table, with the last one perhaps the region. */
	for (uint32_t i = count; i-- > 0;) {
		struct piece *piece = region->pieces[at + i];

		if (piece->creation->held)
			piece_keep(piece);
		else
			piece_end(piece);
	}
	return result;
}

CUresult hook_cuMemUnmap(unsigned int variant, CUdeviceptr ptr, size_t size)
{
	struct region *region;
	CUresult result;

	(void)variant;
	pthread_mutex_lock(&lock);
	region = region_at(ptr);
	result = region && region->allocation ? unmap(region, ptr, size) : direct_unmap(ptr, size);
	pthread_mutex_unlock(&lock);
	return result;
}

/* In the lock. */
static CUresult set_access(struct region *region, CUdeviceptr ptr, size_t size,
			   const CUmemAccessDesc *desc, size_t count)
{
	uint32_t pieces;
	struct piece **piece = region_range(region, ptr, size, &pieces);

	if (!piece || !desc || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++) {
		bool own = desc[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
			   desc[i].location.id == region->device->ordinal;

		if (!own && desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE)
			return refuse("use by the host or by another GPU (cuMemSetAccess)");
	}
	/* Chunks are always mapped for reading and writing: what lies in them differs. */
	for (size_t i = 0; i < count; i++)
		for (uint32_t p = 0; p < pieces; p++)
			if (desc[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
			    desc[i].location.id == region->device->ordinal)
				piece[p]->access = desc[i].flags;
	return CUDA_SUCCESS;
}

CUresult hook_cuMemSetAccess(unsigned int variant, CUdeviceptr ptr, size_t size,
			     const CUmemAccessDesc *desc, size_t count)
{
	struct region *region;
	CUresult result;

	(void)variant;
	pthread_mutex_lock(&lock);
	region = region_at(ptr);
	result = region && region->allocation ? set_access(region, ptr, size, desc, count)
					      : driver.cuMemSetAccess(ptr, size, desc, count);
	pthread_mutex_unlock(&lock);
	return result;
}

/* ---- questions ---- */

/* In the lock. */
static struct piece *mapped_at(CUdeviceptr address)
{
	struct region *region = region_at(address);
	struct piece *piece = region && region->allocation ? region_piece(region, address) : NULL;

	return piece && piece->mapped ? piece : NULL;
}

bool vmm_mapping(CUdeviceptr address, CUdeviceptr *base, size_t *bytes, int *access)
{
	const struct piece *piece;

	pthread_mutex_lock(&lock);
	piece = mapped_at(address);
	if (piece) {
		*base = piece->region->base + piece->offset;
		*bytes = piece->bytes;
		*access = piece->access;
	}
	pthread_mutex_unlock(&lock);
	return piece;
}

CUresult hook_cuMemGetAccess(unsigned int variant, unsigned long long *flags,
			     const CUmemLocation *location, CUdeviceptr ptr)
{
	const struct piece *piece;

	(void)variant;
	if (!device_of(ptr))
		return driver.cuMemGetAccess(flags, location, ptr);
	if (!flags || !location)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&lock);
	piece = mapped_at(ptr);
	if (piece)
		*flags = location->type == CU_MEM_LOCATION_TYPE_DEVICE &&
					 location->id == piece->region->device->ordinal
				 ? (unsigned long long)piece->access
				 : CU_MEM_ACCESS_FLAGS_PROT_NONE;
	pthread_mutex_unlock(&lock);
	/* Else what cuMemAlloc returned: this is for memory that was mapped. */
	return piece ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult hook_cuMemRetainAllocationHandle(unsigned int variant,
					  CUmemGenericAllocationHandle *handle, void *address)
{
	bool paged = device_of((CUdeviceptr)address);
	struct creation *creation;
	struct piece *piece;

	(void)variant;
	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&lock);
	piece = mapped_at((CUdeviceptr)address);
	creation = piece ? piece->creation : direct_at((CUdeviceptr)address);
	if (creation) {
		creation->held++;
		*handle = creation->handle;
	}
	pthread_mutex_unlock(&lock);
	if (creation)
		return CUDA_SUCCESS;
	return paged ? CUDA_ERROR_INVALID_VALUE
		     : driver.cuMemRetainAllocationHandle(handle, address);
}

CUresult hook_cuMemGetAllocationPropertiesFromHandle(unsigned int variant,
						     CUmemAllocationProp *prop,
						     CUmemGenericAllocationHandle handle)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	const struct creation *creation;

	(void)variant;
	if (!is_ours(handle))
		return driver.cuMemGetAllocationPropertiesFromHandle(prop, handle);
	pthread_mutex_lock(&lock);
	creation = prop ? creation_of(handle) : NULL;
	if (creation && creation->prop.allocFlags.compressionType) {
		/* Whether it is compressible only the driver knows. */
		result = driver.cuMemGetAllocationPropertiesFromHandle(prop, creation->real);
	} else if (creation) {
		*prop = creation->prop;
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&lock);
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

	if (!is_ours(*handle))
		return CUDA_SUCCESS;
	pthread_mutex_lock(&lock);
	creation = creation_of(*handle);
	if (!creation || !creation_alive(creation))
		result = CUDA_ERROR_INVALID_VALUE;
	else if (creation->piece)
		result = refuse(what);
	else if ((creation->prop.requestedHandleTypes & types) != types)
		result = CUDA_ERROR_INVALID_VALUE;
	else if (!creation->backed)
		result = back(creation);
	if (!result) {
		creation->used = true;
		*handle = creation->real;
	}
	pthread_mutex_unlock(&lock);
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

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_mutex_init(&lock, NULL);
	entries = NULL;
	entry_count = entry_free = 0;
	regions_forget();
	direct_forget();
}

IN_EVERY_CHILD(in_child)
