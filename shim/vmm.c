// SPDX-License-Identifier: GPL-2.0-or-later
/* Virtual memory management by the program: addresses, and what is mapped there. */
#include "vmm.h"

#include "address.h"
#include "device.h"
#include "fork.h"
#include "log.h"
#include "memory.h"

pthread_mutex_t vmm_lock = PTHREAD_MUTEX_INITIALIZER;

CUresult vmm_refuse(const char *what)
{
	log_warn("%s: not of memory that GreenBoost moves", what);
	return CUDA_ERROR_NOT_SUPPORTED;
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

static CUresult reserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr hint,
			unsigned long long flags)
{
	if (hint || flags)
		return driver.cuMemAddressReserve(ptr, size, alignment, hint, flags);
	return address_reserve(ptr, size, alignment);
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
	if (reserve(ptr, whole, alignment, hint, flags))
		return driver.cuMemAddressReserve(ptr, size, alignment, hint, flags);
	pthread_mutex_lock(&vmm_lock);
	region_add(*ptr, size, whole);
	pthread_mutex_unlock(&vmm_lock);
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
	pthread_mutex_lock(&vmm_lock);
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
	pthread_mutex_unlock(&vmm_lock);
	return result;
}

/* ---- mappings ---- */

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
		result = creation_back(creation);
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
		return vmm_refuse("memory of two GPUs in one reservation (cuMemMap)");
	if (creation->backed && creation->used)
		return vmm_refuse(
			"memory of the driver's, as it is compressible or was mapped in a "
			"smaller reservation first (cuMemMap),");
	if (creation->piece && creation->piece->mapped)
		return vmm_refuse("a second mapping of the same memory (cuMemMap)");
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
	if (!handle_is_ours(handle)) {
		if (region && region->allocation)
			return vmm_refuse("other memory beside it in one reservation (cuMemMap)");
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
	pthread_mutex_lock(&vmm_lock);
	result = map(ptr, size, offset, handle, flags);
	pthread_mutex_unlock(&vmm_lock);
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
	pthread_mutex_lock(&vmm_lock);
	region = region_at(ptr);
	result = region && region->allocation ? unmap(region, ptr, size) : direct_unmap(ptr, size);
	pthread_mutex_unlock(&vmm_lock);
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
			return vmm_refuse("use by the host or by another GPU (cuMemSetAccess)");
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
	pthread_mutex_lock(&vmm_lock);
	region = region_at(ptr);
	result = region && region->allocation ? set_access(region, ptr, size, desc, count)
					      : driver.cuMemSetAccess(ptr, size, desc, count);
	pthread_mutex_unlock(&vmm_lock);
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

	pthread_mutex_lock(&vmm_lock);
	piece = mapped_at(address);
	if (piece) {
		*base = piece->region->base + piece->offset;
		*bytes = piece->bytes;
		*access = piece->access;
	}
	pthread_mutex_unlock(&vmm_lock);
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
	pthread_mutex_lock(&vmm_lock);
	piece = mapped_at(ptr);
	if (piece)
		*flags = location->type == CU_MEM_LOCATION_TYPE_DEVICE &&
					 location->id == piece->region->device->ordinal
				 ? (unsigned long long)piece->access
				 : CU_MEM_ACCESS_FLAGS_PROT_NONE;
	pthread_mutex_unlock(&vmm_lock);
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
	pthread_mutex_lock(&vmm_lock);
	piece = mapped_at((CUdeviceptr)address);
	creation = piece ? piece->creation : direct_at((CUdeviceptr)address);
	if (creation) {
		creation->held++;
		*handle = creation->handle;
	}
	pthread_mutex_unlock(&vmm_lock);
	if (creation)
		return CUDA_SUCCESS;
	return paged ? CUDA_ERROR_INVALID_VALUE
		     : driver.cuMemRetainAllocationHandle(handle, address);
}

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_mutex_init(&vmm_lock, NULL);
	creations_forget();
	regions_forget();
	direct_forget();
}

IN_EVERY_CHILD(in_child)
