// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * VRAM that the driver takes for the program and that never moves: mappings of its
 * own, arrays. Where slots have left none, they give way.
 */
#define _GNU_SOURCE
#include "device.h"
#include "memory.h"
#include "vmm.h"

/* What the driver needs for an array only it knows. */
#define STEPS 16

CUresult room_create(CUmemGenericAllocationHandle *handle, size_t size,
		     const CUmemAllocationProp *prop, unsigned long long flags)
{
	CUresult result = driver.cuMemCreate(handle, size, prop, flags);
	struct device *device = NULL;

	if (result == CUDA_ERROR_OUT_OF_MEMORY && prop &&
	    prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE)
		device = device_ready(prop->location.id);
	if (device && memory_give_way(device, size))
		result = driver.cuMemCreate(handle, size, prop, flags);
	return result;
}

/* True: some room was made, it is worth another try. */
static bool make_some(CUresult result, unsigned int *steps)
{
	struct device *device = result == CUDA_ERROR_OUT_OF_MEMORY ? device_obtain() : NULL;

	return device && (*steps)++ < STEPS && memory_give_way(device, device->limit / STEPS);
}

CUresult hook_cuArrayCreate_v2(unsigned int variant, CUarray *array, const void *descriptor)
{
	unsigned int steps = 0;
	CUresult result;

	(void)variant;
	do {
		result = driver.cuArrayCreate_v2(array, descriptor);
	} while (make_some(result, &steps));
	return result;
}

CUresult hook_cuArray3DCreate_v2(unsigned int variant, CUarray *array, const void *descriptor)
{
	unsigned int steps = 0;
	CUresult result;

	(void)variant;
	do {
		result = driver.cuArray3DCreate_v2(array, descriptor);
	} while (make_some(result, &steps));
	return result;
}

CUresult hook_cuMipmappedArrayCreate(unsigned int variant, CUmipmappedArray *array,
				     const void *descriptor, unsigned int levels)
{
	unsigned int steps = 0;
	CUresult result;

	(void)variant;
	do {
		result = driver.cuMipmappedArrayCreate(array, descriptor, levels);
	} while (make_some(result, &steps));
	return result;
}
