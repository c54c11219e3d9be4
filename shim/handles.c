// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Textures and tensor maps: kernels are given these instead of an address, so what
 * they name must be known when they are made.
 */
#define _GNU_SOURCE
#include "ranges.h"

/* Bytes of an element's channel, by CU_AD_FORMAT_*; formats of whole texels are rounded up. */
static size_t channel_bytes(int format)
{
	switch (format) {
	case 0x01: /* UNSIGNED_INT8 */
	case 0x08: /* SIGNED_INT8 */
		return 1;
	case 0x02: /* UNSIGNED_INT16 */
	case 0x09: /* SIGNED_INT16 */
	case 0x10: /* HALF */
		return 2;
	default:
		return 4;
	}
}

static struct extent rows(CUdeviceptr at, int format, unsigned int channels, size_t width,
			  size_t height, size_t pitch)
{
	return (struct extent){ at, at + (height - 1) * pitch +
					    width * channels * channel_bytes(format) };
}

CUresult hook_cuTexObjectCreate(unsigned int variant, CUtexObject *texture,
				const CUDA_RESOURCE_DESC *resource, const void *sampling,
				const void *view)
{
	struct extent range = { 0, 0 };
	CUresult result;

	(void)variant;
	if (resource && resource->resType == CU_RESOURCE_TYPE_LINEAR)
		range = (struct extent){ resource->res.devPtr,
					 resource->res.devPtr + resource->res.width };
	else if (resource && resource->resType == CU_RESOURCE_TYPE_PITCH2D && resource->res.height)
		range = rows(resource->res.devPtr, resource->res.format, resource->res.numChannels,
			     resource->res.width, resource->res.height, resource->res.pitchInBytes);
	result = ranges_fix(&range, 1, "a texture object");
	return result ? result : driver.cuTexObjectCreate(texture, resource, sampling, view);
}

CUresult hook_cuTexRefSetAddress_v2(unsigned int variant, size_t *offset, CUtexref texture,
				    CUdeviceptr dptr, size_t bytes)
{
	const struct extent range = { dptr, dptr + bytes };
	CUresult result = ranges_fix(&range, 1, "a texture reference");

	(void)variant;
	return result ? result : driver.cuTexRefSetAddress_v2(offset, texture, dptr, bytes);
}

static CUresult fix_2d(const CUDA_ARRAY_DESCRIPTOR *shape, CUdeviceptr dptr, size_t pitch)
{
	struct extent range = { 0, 0 };

	if (shape && shape->Height)
		range = rows(dptr, shape->Format, shape->NumChannels, shape->Width, shape->Height,
			     pitch);
	return ranges_fix(&range, 1, "a texture reference");
}

CUresult hook_cuTexRefSetAddress2D_v2(unsigned int variant, CUtexref texture,
				      const CUDA_ARRAY_DESCRIPTOR *shape, CUdeviceptr dptr,
				      size_t pitch)
{
	CUresult result = fix_2d(shape, dptr, pitch);

	(void)variant;
	return result ? result : driver.cuTexRefSetAddress2D_v2(texture, shape, dptr, pitch);
}

CUresult hook_cuTexRefSetAddress2D_v3(unsigned int variant, CUtexref texture,
				      const CUDA_ARRAY_DESCRIPTOR *shape, CUdeviceptr dptr,
				      size_t pitch)
{
	CUresult result = fix_2d(shape, dptr, pitch);

	(void)variant;
	return result ? result : driver.cuTexRefSetAddress2D_v3(texture, shape, dptr, pitch);
}

/*
 * A tensor map goes to a kernel by value, and the scan of its parameters finds the
 * address in it. Its layout is not documented, so that is not taken for granted.
 */
static CUresult encoded(CUresult result, const CUtensorMap *map, const void *address)
{
	if (result)
		return result;
	for (int i = 0; i < 16; i++)
		if (map->opaque[i] == (uint64_t)address)
			return result;
	launch_keep_pointee((CUdeviceptr)address);
	return result;
}

CUresult hook_cuTensorMapEncodeTiled(unsigned int variant, CUtensorMap *map, int type,
				     uint32_t rank, void *address, const uint64_t *dims,
				     const uint64_t *strides, const uint32_t *box,
				     const uint32_t *steps, int interleave, int swizzle,
				     int promotion, int fill)
{
	(void)variant;
	return encoded(driver.cuTensorMapEncodeTiled(map, type, rank, address, dims, strides, box,
						     steps, interleave, swizzle, promotion, fill),
		       map, address);
}

CUresult hook_cuTensorMapEncodeIm2col(unsigned int variant, CUtensorMap *map, int type,
				      uint32_t rank, void *address, const uint64_t *dims,
				      const uint64_t *strides, const int *lower, const int *upper,
				      uint32_t channels, uint32_t pixels, const uint32_t *steps,
				      int interleave, int swizzle, int promotion, int fill)
{
	(void)variant;
	return encoded(driver.cuTensorMapEncodeIm2col(map, type, rank, address, dims, strides,
						      lower, upper, channels, pixels, steps,
						      interleave, swizzle, promotion, fill),
		       map, address);
}

CUresult hook_cuTensorMapEncodeIm2colWide(unsigned int variant, CUtensorMap *map, int type,
					  uint32_t rank, void *address, const uint64_t *dims,
					  const uint64_t *strides, int lower, int upper,
					  uint32_t channels, uint32_t pixels, const uint32_t *steps,
					  int interleave, int mode, int swizzle, int promotion,
					  int fill)
{
	(void)variant;
	return encoded(driver.cuTensorMapEncodeIm2colWide(
			       map, type, rank, address, dims, strides, lower, upper, channels,
			       pixels, steps, interleave, mode, swizzle, promotion, fill),
		       map, address);
}

CUresult hook_cuTensorMapReplaceAddress(unsigned int variant, CUtensorMap *map, void *address)
{
	(void)variant;
	return encoded(driver.cuTensorMapReplaceAddress(map, address), map, address);
}
