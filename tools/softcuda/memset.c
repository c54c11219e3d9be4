// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <string.h>

#include "api.gen.h"
#include "copy.h"
#include "stream.h"

struct set {
	struct work work;
	CUDA_MEMSET_NODE_PARAMS params; /* width counts elements */
};

static void set_row(unsigned char *row, const CUDA_MEMSET_NODE_PARAMS *params)
{
	switch (params->elementSize) {
	case 1:
		memset(row, (int)params->value, params->width);
		break;
	case 2:
		for (size_t i = 0; i < params->width; i++)
			((uint16_t *)row)[i] = (uint16_t)params->value;
		break;
	default:
		for (size_t i = 0; i < params->width; i++)
			((uint32_t *)row)[i] = params->value;
	}
}

static void set_run(struct work *work, const struct place *place)
{
	const CUDA_MEMSET_NODE_PARAMS *params = &((struct set *)work)->params;

	(void)place;
	for (size_t y = 0; y < params->height; y++)
		set_row((unsigned char *)params->dst + y * params->pitch, params);
}

static void set_release(struct work *work)
{
	free(work);
}

CUresult memset_work(const CUDA_MEMSET_NODE_PARAMS *params, struct work **work)
{
	struct box box = { .dst = { .start = params->dst, .pitch = params->pitch }, .depth = 1 };
	unsigned int element = params->elementSize;
	struct set *set;
	CUresult error;

	if ((element != 1 && element != 2 && element != 4) || params->dst % element ||
	    __builtin_mul_overflow(params->width, element, &box.width))
		return CUDA_ERROR_INVALID_VALUE;
	box.height = params->height;
	if (box.height > 1 && (params->pitch < box.width || params->pitch % element))
		return CUDA_ERROR_INVALID_VALUE;
	error = end_check(&box, &box.dst, true);
	if (error)
		return error;
	set = malloc(sizeof *set);
	if (!set)
		return CUDA_ERROR_OUT_OF_MEMORY;
	work_init(&set->work, CU_GRAPH_NODE_TYPE_MEMSET, "a memset", set_run, set_release);
	set->params = *params;
	*work = &set->work;
	return CUDA_SUCCESS;
}

void memset_params_of_work(const struct work *work, CUDA_MEMSET_NODE_PARAMS *params)
{
	*params = ((const struct set *)work)->params;
}

static bool memset_granted(const CUDA_MEMSET_NODE_PARAMS *params, CUdevice device)
{
	size_t row = params->width * params->elementSize;

	return !params->width || !params->height ||
	       space_grants(params->dst, (params->height - 1) * params->pitch + row, device);
}

/*
 * The host does not wait, except for host memory, as the driver has it: whether
 * the call has Async in its name changes the stream alone.
 */
static CUresult set_memory(CUstream stream, const CUDA_MEMSET_NODE_PARAMS *params, bool sync)
{
	struct work *work;
	CUresult error;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	error = memset_work(params, &work);
	if (!error && !memset_granted(params, stream->context->device)) {
		work_put(work);
		error = CUDA_ERROR_INVALID_VALUE;
	}
	if (error || !params->width || !params->height) {
		if (!error)
			work_put(work);
		return error;
	}
	if (sync && space_classify(params->dst, 1) == RANGE_HOST)
		return stream_submit_and_wait(stream, work);
	return stream_submit(stream, work);
}

static CUresult set_1d(bool per_thread, CUstream handle, CUdeviceptr dst, unsigned int value,
		       unsigned int element, size_t n, bool sync)
{
	const CUDA_MEMSET_NODE_PARAMS params = {
		.dst = dst,
		.value = value,
		.elementSize = element,
		.width = n,
		.height = 1,
	};

	return set_memory(stream_resolve(handle, per_thread), &params, sync);
}

static CUresult set_2d(bool per_thread, CUstream handle, CUdeviceptr dst, size_t pitch,
		       unsigned int value, unsigned int element, size_t width, size_t height,
		       bool sync)
{
	const CUDA_MEMSET_NODE_PARAMS params = {
		.dst = dst,
		.pitch = pitch,
		.value = value,
		.elementSize = element,
		.width = width,
		.height = height,
	};

	return set_memory(stream_resolve(handle, per_thread), &params, sync);
}

CUresult do_cuMemsetD8_v2(bool per_thread, CUdeviceptr dst, unsigned char value, size_t n)
{
	return set_1d(per_thread, NULL, dst, value, 1, n, true);
}

CUresult do_cuMemsetD16_v2(bool per_thread, CUdeviceptr dst, unsigned short value, size_t n)
{
	return set_1d(per_thread, NULL, dst, value, 2, n, true);
}

CUresult do_cuMemsetD32_v2(bool per_thread, CUdeviceptr dst, unsigned int value, size_t n)
{
	return set_1d(per_thread, NULL, dst, value, 4, n, true);
}

CUresult do_cuMemsetD8Async(bool per_thread, CUdeviceptr dst, unsigned char value, size_t n,
			    CUstream stream)
{
	return set_1d(per_thread, stream, dst, value, 1, n, false);
}

CUresult do_cuMemsetD16Async(bool per_thread, CUdeviceptr dst, unsigned short value, size_t n,
			     CUstream stream)
{
	return set_1d(per_thread, stream, dst, value, 2, n, false);
}

CUresult do_cuMemsetD32Async(bool per_thread, CUdeviceptr dst, unsigned int value, size_t n,
			     CUstream stream)
{
	return set_1d(per_thread, stream, dst, value, 4, n, false);
}

CUresult do_cuMemsetD2D8_v2(bool per_thread, CUdeviceptr dst, size_t pitch, unsigned char value,
			    size_t width, size_t height)
{
	return set_2d(per_thread, NULL, dst, pitch, value, 1, width, height, true);
}

CUresult do_cuMemsetD2D16_v2(bool per_thread, CUdeviceptr dst, size_t pitch, unsigned short value,
			     size_t width, size_t height)
{
	return set_2d(per_thread, NULL, dst, pitch, value, 2, width, height, true);
}

CUresult do_cuMemsetD2D32_v2(bool per_thread, CUdeviceptr dst, size_t pitch, unsigned int value,
			     size_t width, size_t height)
{
	return set_2d(per_thread, NULL, dst, pitch, value, 4, width, height, true);
}

CUresult do_cuMemsetD2D8Async(bool per_thread, CUdeviceptr dst, size_t pitch, unsigned char value,
			      size_t width, size_t height, CUstream stream)
{
	return set_2d(per_thread, stream, dst, pitch, value, 1, width, height, false);
}

CUresult do_cuMemsetD2D16Async(bool per_thread, CUdeviceptr dst, size_t pitch, unsigned short value,
			       size_t width, size_t height, CUstream stream)
{
	return set_2d(per_thread, stream, dst, pitch, value, 2, width, height, false);
}

CUresult do_cuMemsetD2D32Async(bool per_thread, CUdeviceptr dst, size_t pitch, unsigned int value,
			       size_t width, size_t height, CUstream stream)
{
	return set_2d(per_thread, stream, dst, pitch, value, 4, width, height, false);
}
