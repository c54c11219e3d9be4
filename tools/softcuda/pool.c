// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Stream-ordered allocation. Memory is had at once and freed in the stream's
 * order; a pool keeps nothing back, so its attributes are remembered only.
 */
#include <stdlib.h>

#include "api.gen.h"
#include "device.h"
#include "entry.h"
#include "memory.h"
#include "settings.h"
#include "stream.h"

struct CUmemPoolHandle_st {
	enum kind kind;
	CUdevice device;
	bool ours;
	_Atomic uint64_t attributes[CU_MEMPOOL_ATTR_USED_MEM_HIGH + 1];
};

static struct CUmemPoolHandle_st default_pools[MAX_DEVICES] = {
	[0 ... MAX_DEVICES - 1] = {
		.kind = KIND_POOL,
		.ours = true,
		.attributes = { [CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES] = 1,
				[CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC] = 1,
				[CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES] = 1 },
	},
};
static CUmemoryPool _Atomic current_pools[MAX_DEVICES];

static CUmemoryPool default_pool(CUdevice device)
{
	default_pools[device].device = device;
	return &default_pools[device];
}

static CUresult alloc(CUstream stream, size_t bytes, CUdeviceptr *dptr)
{
	static atomic_flag said = ATOMIC_FLAG_INIT;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!dptr || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (stream->capture)
		return entry_unsupported("allocating memory in a captured graph", &said);
	return memory_alloc(stream->context, bytes, dptr);
}

CUresult do_cuMemAllocAsync(bool per_thread, CUdeviceptr *dptr, size_t bytes, CUstream handle)
{
	return alloc(stream_resolve(handle, per_thread), bytes, dptr);
}

CUresult do_cuMemAllocFromPoolAsync(bool per_thread, CUdeviceptr *dptr, size_t bytes,
				    CUmemoryPool pool, CUstream handle)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!is_kind(pool, KIND_POOL) || (stream && stream->context->device != pool->device))
		return CUDA_ERROR_INVALID_VALUE;
	return alloc(stream, bytes, dptr);
}

struct free_work {
	struct work work;
	CUdeviceptr dptr;
};

static void free_run(struct work *work, const struct place *place)
{
	(void)place;
	memory_free_marked(((struct free_work *)work)->dptr);
}

static void free_release(struct work *work)
{
	free(work);
}

CUresult do_cuMemFreeAsync(bool per_thread, CUdeviceptr dptr, CUstream handle)
{
	static atomic_flag said = ATOMIC_FLAG_INIT;
	CUstream stream = stream_resolve(handle, per_thread);
	struct free_work *work;
	CUresult error;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (stream->capture)
		return entry_unsupported("freeing memory in a captured graph", &said);
	work = malloc(sizeof *work);
	if (!work)
		return CUDA_ERROR_OUT_OF_MEMORY;
	error = memory_mark_freeing(dptr);
	if (error) {
		free(work);
		return error;
	}
	work_init(&work->work, CU_GRAPH_NODE_TYPE_EMPTY, "cuMemFreeAsync", free_run, free_release);
	work->dptr = dptr;
	error = stream_submit(stream, &work->work);
	if (error)
		memory_unmark_freeing(dptr);
	return error;
}

CUresult do_cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
	if (!pool)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*pool = default_pool(device);
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device)
{
	CUresult error = do_cuDeviceGetDefaultMemPool(pool, device);

	if (!error && current_pools[device])
		*pool = current_pools[device];
	return error;
}

CUresult do_cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool)
{
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	if (!is_kind(pool, KIND_POOL) || pool->device != device)
		return CUDA_ERROR_INVALID_VALUE;
	current_pools[device] = pool;
	return CUDA_SUCCESS;
}

CUresult do_cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *props)
{
	struct CUmemPoolHandle_st *created;

	if (!pool || !props || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
		return CUDA_ERROR_INVALID_VALUE;
	/* Memory that can be exported is to be had, exporting it is not. */
	if (props->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (!device_exists(props->location.id))
		return CUDA_ERROR_INVALID_DEVICE;
	created = calloc(1, sizeof *created);
	if (!created)
		return CUDA_ERROR_OUT_OF_MEMORY;
	created->kind = KIND_POOL;
	created->device = props->location.id;
	*pool = created;
	return CUDA_SUCCESS;
}

CUresult do_cuMemPoolDestroy(CUmemoryPool pool)
{
	CUmemoryPool expected = pool;

	if (!is_kind(pool, KIND_POOL) || pool->ours)
		return CUDA_ERROR_INVALID_VALUE;
	atomic_compare_exchange_strong(&current_pools[pool->device], &expected, NULL);
	pool->kind = KIND_NONE;
	free(pool);
	return CUDA_SUCCESS;
}

/* The first three are flags, of 4 bytes; the others are sizes, of 8. */
static bool is_flag(int attribute)
{
	return attribute <= CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
}

static bool attribute_known(CUmemoryPool pool, int attribute, const void *value)
{
	return is_kind(pool, KIND_POOL) && value &&
	       attribute >= CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES &&
	       attribute <= CU_MEMPOOL_ATTR_USED_MEM_HIGH;
}

CUresult do_cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void *value)
{
	if (!attribute_known(pool, attribute, value))
		return CUDA_ERROR_INVALID_VALUE;
	if (is_flag(attribute))
		*(int *)value = (int)pool->attributes[attribute];
	else
		*(uint64_t *)value = pool->attributes[attribute];
	return CUDA_SUCCESS;
}

CUresult do_cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value)
{
	if (!attribute_known(pool, attribute, value))
		return CUDA_ERROR_INVALID_VALUE;
	if (is_flag(attribute))
		pool->attributes[attribute] = (uint64_t) * (int *)value;
	else
		pool->attributes[attribute] = *(uint64_t *)value;
	return CUDA_SUCCESS;
}

CUresult do_cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *desc, size_t count)
{
	if (!is_kind(pool, KIND_POOL) || (count && !desc))
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++)
		if (!device_exists(desc[i].location.id))
			return CUDA_ERROR_INVALID_DEVICE;
	return CUDA_SUCCESS;
}

CUresult do_cuMemPoolTrimTo(CUmemoryPool pool, size_t keep)
{
	(void)keep;
	return is_kind(pool, KIND_POOL) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
