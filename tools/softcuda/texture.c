// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What kernels are given in place of an address: texture objects of linear and of
 * pitched memory, and tensor maps. Kernels read them by texture_memory().
 */
#include <stdlib.h>
#include <string.h>

#include "api.gen.h"
#include "handle.h"
#include "space.h"
#include "texture.h"

struct texture {
	enum kind kind;
	CUDA_RESOURCE_DESC resource;
};

const void *texture_memory(CUtexObject texture)
{
	const struct texture *t = (const struct texture *)texture;

	return is_kind(t, KIND_TEXTURE) ? (const void *)t->resource.res.devPtr : NULL;
}

CUresult do_cuTexObjectCreate(CUtexObject *texture, const CUDA_RESOURCE_DESC *resource,
			      const void *sampling, const void *view)
{
	struct texture *made;

	if (!texture || !resource || !sampling)
		return CUDA_ERROR_INVALID_VALUE;
	if (resource->resType != CU_RESOURCE_TYPE_LINEAR &&
	    resource->resType != CU_RESOURCE_TYPE_PITCH2D)
		return CUDA_ERROR_NOT_SUPPORTED; /* there are no arrays */
	if (view)
		return CUDA_ERROR_INVALID_VALUE; /* only arrays may have one */
	if (space_classify(resource->res.devPtr, 1) != RANGE_DEVICE)
		return CUDA_ERROR_INVALID_VALUE;
	made = malloc(sizeof *made);
	if (!made)
		return CUDA_ERROR_OUT_OF_MEMORY;
	made->kind = KIND_TEXTURE;
	made->resource = *resource;
	*texture = (uintptr_t)made;
	return CUDA_SUCCESS;
}

CUresult do_cuTexObjectDestroy(CUtexObject texture)
{
	struct texture *t = (struct texture *)texture;

	if (!is_kind(t, KIND_TEXTURE))
		return CUDA_ERROR_INVALID_VALUE;
	t->kind = KIND_NONE;
	free(t);
	return CUDA_SUCCESS;
}

/* NVIDIA's layout is not documented. Here the address comes first and the rest says what it is. */
CUresult do_cuTensorMapEncodeTiled(CUtensorMap *map, int type, uint32_t rank, void *address,
				   const uint64_t *dims, const uint64_t *strides,
				   const uint32_t *box, const uint32_t *steps, int interleave,
				   int swizzle, int promotion, int fill)
{
	(void)interleave;
	(void)swizzle;
	(void)promotion;
	(void)fill;
	if (!map || !rank || rank > 5 || !dims || !box || !steps || (rank > 1 && !strides) ||
	    (uintptr_t)map % 64 || (uintptr_t)address % 16)
		return CUDA_ERROR_INVALID_VALUE;
	memset(map, 0, sizeof *map);
	map->opaque[0] = (uintptr_t)address;
	map->opaque[1] = (uint64_t)type << 32 | rank;
	memcpy(&map->opaque[2], dims, rank * sizeof *dims);
	return CUDA_SUCCESS;
}

CUresult do_cuTensorMapReplaceAddress(CUtensorMap *map, void *address)
{
	if (!map || (uintptr_t)map % 64 || (uintptr_t)address % 16)
		return CUDA_ERROR_INVALID_VALUE;
	map->opaque[0] = (uintptr_t)address;
	return CUDA_SUCCESS;
}
