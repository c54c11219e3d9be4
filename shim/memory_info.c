// SPDX-License-Identifier: GPL-2.0-or-later
/* What programs are told of memory: totals, and what pointers say of themselves. */
#include <string.h>

#include "device.h"
#include "memory.h"
#include "memory_of.h"
#include "vmm.h"

/* T2 and T3 that the device's session could use. */
static bool tiers_below(struct device *device, uint64_t *total, uint64_t *available)
{
	struct message request;
	struct reply reply;

	client_request(&request, "memory");
	if (client_call(&device->client, &request, &reply))
		return false;
	*total = reply.total;
	*available = reply.free;
	if (device->maps) {
		/* NVMe cannot be read in place. */
		uint64_t mapped = (uint64_t)__atomic_load_n(&device->mapped, __ATOMIC_RELAXED) *
				  device->chunk;

		*total = *total < device->terms.ram ? *total : device->terms.ram;
		mapped = mapped < *total ? mapped : *total;
		*available = *available < *total - mapped ? *available : *total - mapped;
	}
	return true;
}

/* False: the daemon does not say. */
static bool totals(struct device *device, uint64_t *total, uint64_t *available)
{
	uint64_t below, below_free, vram, paged;

	pthread_mutex_lock(&device->allocate);
	ordered_reclaim(device, false);
	pthread_mutex_unlock(&device->allocate);
	if (!tiers_below(device, &below, &below_free))
		return false;
	pthread_mutex_lock(&device->lock);
	vram = (uint64_t)device->slots_allowed * device->chunk;
	paged = device->committed * device->chunk;
	pthread_mutex_unlock(&device->lock);
	*total = device->limit + below;
	*available = (vram > paged ? vram - paged : 0) + below_free;
	return true;
}

CUresult hook_cuMemGetInfo_v2(unsigned int variant, size_t *available, size_t *total)
{
	struct device *device = device_obtain();
	uint64_t all, left;

	(void)variant;
	if (!device || !available || !total || !totals(device, &all, &left))
		return driver.cuMemGetInfo_v2(available, total);
	*total = all;
	*available = left;
	return CUDA_SUCCESS;
}

__attribute__((visibility("default"))) enum memory_of
greenboost_memory_of(const unsigned char uuid[16], uint64_t *total, uint64_t *available)
{
	struct device *device;
	CUuuid own;

	for (CUdevice i = 0; i < MAX_DEVICES; i++) {
		device = device_connected(i);
		if (!device || driver.cuDeviceGetUuid_v2(&own, i) ||
		    memcmp(own.bytes, uuid, sizeof(own.bytes)) != 0)
			continue;
		if (atomic_load_explicit(&device->ready, memory_order_acquire))
			return totals(device, total, available) ? MEMORY_WHOLE : MEMORY_UNKNOWN;
		return tiers_below(device, total, available) ? MEMORY_BELOW : MEMORY_UNKNOWN;
	}
	return MEMORY_UNKNOWN;
}

CUresult hook_cuDeviceTotalMem_v2(unsigned int variant, size_t *bytes, CUdevice ordinal)
{
	CUresult result = driver.cuDeviceTotalMem_v2(bytes, ordinal);
	struct device *device = result ? NULL : device_connect(ordinal);
	uint64_t below, below_free;

	(void)variant;
	if (!device || !tiers_below(device, &below, &below_free))
		return result;
	/* Before there is a context the limit is not known; the device's own size is its upper
	 * bound. */
	*bytes = (atomic_load(&device->ready) ? device->limit : *bytes) + below;
	return CUDA_SUCCESS;
}

/*
 * Base and size of the paged allocation around an address, or of the program's mapping.
 * access: of such a one, else -1.
 */
static bool paged_range(CUdeviceptr dptr, CUdeviceptr *base, size_t *size, struct device **owner,
			int *access)
{
	struct device *device = device_of(dptr);
	const struct allocation *allocation;
	bool sparse = false;

	if (!device)
		return false;
	pthread_mutex_lock(&device->lock);
	allocation = alloc_map_find(&device->map, dptr);
	*access = -1;
	if (allocation) {
		sparse = allocation->sparse;
		*base = allocation->base;
		*size = allocation->bytes;
		*owner = device;
	}
	pthread_mutex_unlock(&device->lock);
	return allocation && (!sparse || vmm_mapping(dptr, base, size, access));
}

CUresult hook_cuMemGetAddressRange_v2(unsigned int variant, CUdeviceptr *base, size_t *size,
				      CUdeviceptr dptr)
{
	struct device *device;
	CUdeviceptr found;
	size_t bytes;
	int access;

	(void)variant;
	if (!paged_range(dptr, &found, &bytes, &device, &access))
		return driver.cuMemGetAddressRange_v2(base, size, dptr);
	if (base)
		*base = found;
	if (size)
		*size = bytes;
	return CUDA_SUCCESS;
}

CUresult hook_cuPointerGetAttribute(unsigned int variant, void *data, int attribute,
				    CUdeviceptr ptr)
{
	struct device *device;
	CUdeviceptr base;
	size_t bytes;
	int access;

	(void)variant;
	if (!paged_range(ptr, &base, &bytes, &device, &access) || !data)
		return driver.cuPointerGetAttribute(data, attribute, ptr);
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		/* What was mapped is no context's. */
		*(CUcontext *)data = access < 0 ? device->context : NULL;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		*(unsigned int *)data = CU_MEMORYTYPE_DEVICE;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		*(CUdeviceptr *)data = ptr;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)data = device->ordinal;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(CUdeviceptr *)data = base;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)data = bytes;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:
		*(unsigned long long *)data =
			base; /* unique while it lives, which is what is promised */
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
	case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
		*(unsigned char *)data = 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPED:
		*(unsigned char *)data = 1;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_HOST_POINTER:
		return CUDA_ERROR_INVALID_VALUE; /* as for any memory of the device alone */
	case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
		*(int *)data = access < 0 ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : access;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
		*(unsigned char *)data = 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
		*(unsigned long long *)data = 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
		*(CUmemoryPool *)data = NULL;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
		*(size_t *)data = bytes;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
	case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
		*(CUdeviceptr *)data = base;
		return CUDA_SUCCESS;
	default:
		/* The driver cannot be asked: what it knows at the address changes, and may be
		 * nothing. */
		return CUDA_ERROR_INVALID_VALUE;
	}
}

CUresult hook_cuPointerGetAttributes(unsigned int variant, unsigned int count, int *attributes,
				     void **data, CUdeviceptr ptr)
{
	if (!device_of(ptr) || !attributes || !data)
		return driver.cuPointerGetAttributes(count, attributes, data, ptr);
	for (unsigned int i = 0; i < count; i++) {
		/* What does not apply is zero here, where the singular form fails. */
		if (attributes[i] == CU_POINTER_ATTRIBUTE_HOST_POINTER)
			*(void **)data[i] = NULL;
		else
			hook_cuPointerGetAttribute(variant, data[i], attributes[i], ptr);
	}
	return CUDA_SUCCESS;
}
