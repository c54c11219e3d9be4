// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What streams do to memory besides kernels, copies and memsets: values that they
 * write and wait for, and decompression. Who waits for a value keeps its chunk in
 * VRAM until it has come.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "device.h"
#include "gate.h"
#include "ranges.h"

/* Eight functions that differ in what they are called. */
#define VALUE_HOOK(name, type, waits)                                                         \
	CUresult hook_##name(unsigned int variant, CUstream stream, CUdeviceptr address,      \
			     type value, unsigned int flags)                                  \
	{                                                                                     \
		struct launch held;                                                           \
		bool entered = gate_enter();                                                  \
		CUresult result =                                                             \
			entered ? CUDA_SUCCESS                                                \
				: begin_value(&held, address, sizeof(type), stream, variant); \
                                                                                              \
		if (!result) {                                                                \
			result = driver.name[variant](stream, address, value, flags);         \
			if (!entered)                                                         \
				end_value(&held, stream, variant, waits && !result);          \
		}                                                                             \
		if (entered)                                                                  \
			gate_leave();                                                         \
		return result;                                                                \
	}

static CUresult begin_value(struct launch *held, CUdeviceptr address, size_t bytes, CUstream stream,
			    unsigned int variant)
{
	const struct extent range = { address, address + bytes };

	held->captured = launch_captured(stream, variant);
	return ranges_begin(held, &range, 1, stream, variant);
}

static void end_value(struct launch *held, CUstream stream, unsigned int variant, bool waits)
{
	struct device *device = waits && !held->captured ? device_paging() : NULL;

	launch_end(held);
	if (device)
		residency_await(device, stream, variant);
}

VALUE_HOOK(cuStreamWriteValue32, uint32_t, false)
VALUE_HOOK(cuStreamWriteValue32_v2, uint32_t, false)
VALUE_HOOK(cuStreamWriteValue64, uint64_t, false)
VALUE_HOOK(cuStreamWriteValue64_v2, uint64_t, false)
VALUE_HOOK(cuStreamWaitValue32, uint32_t, true)
VALUE_HOOK(cuStreamWaitValue32_v2, uint32_t, true)
VALUE_HOOK(cuStreamWaitValue64, uint64_t, true)
VALUE_HOOK(cuStreamWaitValue64_v2, uint64_t, true)

struct extent memop_value(const CUstreamBatchMemOpParams *op)
{
	CUdeviceptr address = op->waitValue.address;

	switch (op->operation) {
	case CU_STREAM_MEM_OP_WAIT_VALUE_32:
	case CU_STREAM_MEM_OP_WRITE_VALUE_32:
		return (struct extent){ address, address + 4 };
	case CU_STREAM_MEM_OP_WAIT_VALUE_64:
	case CU_STREAM_MEM_OP_WRITE_VALUE_64:
		return (struct extent){ address, address + 8 };
	default:
		return (struct extent){ 0, 0 }; /* names no memory */
	}
}

/* The values that a batch names; to be freed. NULL: no memory, or none. */
static struct extent *values_of(const CUstreamBatchMemOpParams *ops, unsigned int count)
{
	struct extent *values = ops && count ? calloc(count, sizeof(*values)) : NULL;

	for (unsigned int i = 0; values && i < count; i++)
		values[i] = memop_value(&ops[i]);
	return values;
}

static CUresult batch(CUresult (*call)(CUstream, unsigned int, CUstreamBatchMemOpParams *,
				       unsigned int),
		      unsigned int variant, CUstream stream, unsigned int count,
		      CUstreamBatchMemOpParams *ops, unsigned int flags)
{
	struct launch held;
	struct extent *values;
	CUresult result;

	if (gate_enter()) {
		result = call(stream, count, ops, flags);
		gate_leave();
		return result;
	}
	if (!ops || !count)
		return call(stream, count, ops, flags);
	values = values_of(ops, count);
	if (!values)
		return CUDA_ERROR_OUT_OF_MEMORY;
	held.captured = launch_captured(stream, variant);
	result = ranges_begin(&held, values, count, stream, variant);
	free(values);
	if (result)
		return result;
	result = call(stream, count, ops, flags);
	end_value(&held, stream, variant, !result); /* some of them may wait */
	return result;
}

CUresult hook_cuStreamBatchMemOp(unsigned int variant, CUstream stream, unsigned int count,
				 CUstreamBatchMemOpParams *ops, unsigned int flags)
{
	return batch(driver.cuStreamBatchMemOp[variant], variant, stream, count, ops, flags);
}

CUresult hook_cuStreamBatchMemOp_v2(unsigned int variant, CUstream stream, unsigned int count,
				    CUstreamBatchMemOpParams *ops, unsigned int flags)
{
	return batch(driver.cuStreamBatchMemOp_v2[variant], variant, stream, count, ops, flags);
}

CUresult memop_fix(const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	struct extent *values = values_of(params->paramArray, params->count);
	CUresult result;

	if (!values)
		return params->paramArray && params->count ? CUDA_ERROR_OUT_OF_MEMORY
							   : CUDA_SUCCESS;
	result = ranges_fix(values, params->count, "a graph's batch of memory operations");
	free(values);
	return result;
}

static struct extent bytes_at(const void *address, size_t bytes)
{
	return (struct extent){ (CUdeviceptr)address, (CUdeviceptr)address + bytes };
}

/* Each is a batch of its own: nothing is promised about their order. */
CUresult hook_cuMemBatchDecompressAsync(unsigned int variant, CUmemDecompressParams *streams,
					size_t count, unsigned int flags, size_t *fail_idx,
					CUstream stream)
{
	bool entered = gate_enter();
	CUresult result = CUDA_SUCCESS;
	size_t failed;

	if (entered || !streams) {
		result = driver.cuMemBatchDecompressAsync[variant](streams, count, flags, fail_idx,
								   stream);
		if (entered)
			gate_leave();
		return result;
	}
	for (size_t i = 0; i < count && !result; i++) {
		const CUmemDecompressParams *s = &streams[i];
		const struct extent ranges[] = {
			bytes_at(s->src, s->srcNumBytes),
			bytes_at(s->dst, s->dstNumBytes),
			bytes_at(s->dstActBytes, sizeof(*s->dstActBytes)),
		};
		struct launch held = { .captured = launch_captured(stream, variant) };

		result = ranges_begin(&held, ranges, 3, stream, variant);
		if (!result) {
			result = driver.cuMemBatchDecompressAsync[variant](&streams[i], 1, flags,
									   &failed, stream);
			launch_end(&held);
		}
		if (result && fail_idx)
			*fail_idx = i;
	}
	return result;
}
