// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Values that a stream writes or waits for. A stream that waits looks again and
 * again, as hardware does; nothing is promised about how soon it sees a value.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api.gen.h"
#include "memop.h"
#include "space.h"
#include "stream.h"

#define PAUSE_NS 50000

struct memops {
	struct work work;
	unsigned int count;
	CUstreamBatchMemOpParams ops[];
};

static bool wide(const CUstreamBatchMemOpParams *op)
{
	return op->operation == CU_STREAM_MEM_OP_WAIT_VALUE_64 ||
	       op->operation == CU_STREAM_MEM_OP_WRITE_VALUE_64;
}

static bool waits(const CUstreamBatchMemOpParams *op)
{
	return op->operation == CU_STREAM_MEM_OP_WAIT_VALUE_32 ||
	       op->operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
}

static bool come(const CUstreamBatchMemOpParams *op)
{
	const uint64_t wanted = op->waitValue.value;
	bool is_wide = wide(op);
	uint64_t found =
		is_wide ? __atomic_load_n((uint64_t *)op->waitValue.address, __ATOMIC_ACQUIRE)
			: __atomic_load_n((uint32_t *)op->waitValue.address, __ATOMIC_ACQUIRE);

	switch (op->waitValue.flags) {
	case CU_STREAM_WAIT_VALUE_GEQ:
		/* Cyclic, as the documentation has it. */
		return is_wide ? (int64_t)(found - wanted) >= 0
			       : (int32_t)((uint32_t)found - (uint32_t)wanted) >= 0;
	case CU_STREAM_WAIT_VALUE_EQ:
		return found == wanted;
	case CU_STREAM_WAIT_VALUE_AND:
		return found & wanted;
	default:
		return is_wide ? ~(found | wanted) : (uint32_t) ~(found | wanted);
	}
}

static void memops_run(struct work *work, const struct place *place)
{
	const struct memops *memops = (const struct memops *)work;

	(void)place;
	for (unsigned int i = 0; i < memops->count; i++) {
		const CUstreamBatchMemOpParams *op = &memops->ops[i];

		if (waits(op)) {
			while (!come(op))
				nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
		} else if (wide(op)) {
			__atomic_store_n((uint64_t *)op->waitValue.address, op->waitValue.value,
					 __ATOMIC_RELEASE);
		} else if (op->operation == CU_STREAM_MEM_OP_WRITE_VALUE_32) {
			__atomic_store_n((uint32_t *)op->waitValue.address,
					 (uint32_t)op->waitValue.value, __ATOMIC_RELEASE);
		}
	}
}

static void memops_release(struct work *work)
{
	free(work);
}

static CUresult check(const CUstreamBatchMemOpParams *op)
{
	size_t bytes = wide(op) ? 8 : 4;
	enum range_kind kind;

	if (op->operation == CU_STREAM_MEM_OP_BARRIER ||
	    op->operation == CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES)
		return CUDA_SUCCESS;
	if (op->operation < CU_STREAM_MEM_OP_WAIT_VALUE_32 ||
	    op->operation > CU_STREAM_MEM_OP_BARRIER || op->waitValue.address % bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (waits(op) && op->waitValue.flags > CU_STREAM_WAIT_VALUE_NOR)
		return CUDA_ERROR_NOT_SUPPORTED;
	kind = space_classify(op->waitValue.address, bytes);
	return kind == RANGE_DEVICE || kind == RANGE_HOST ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult memop_work(const CUDA_BATCH_MEM_OP_NODE_PARAMS *params, struct work **work)
{
	struct memops *memops;

	if (!params->count || !params->paramArray || params->flags)
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned int i = 0; i < params->count; i++) {
		CUresult error = check(&params->paramArray[i]);

		if (error)
			return error;
	}
	memops = malloc(sizeof *memops + params->count * sizeof *memops->ops);
	if (!memops)
		return CUDA_ERROR_OUT_OF_MEMORY;
	work_init(&memops->work, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, "a memory operation", memops_run,
		  memops_release);
	memops->count = params->count;
	memcpy(memops->ops, params->paramArray, params->count * sizeof *memops->ops);
	*work = &memops->work;
	return CUDA_SUCCESS;
}

void memop_params_of_work(const struct work *work, CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	struct memops *memops = (struct memops *)work;

	*params = (CUDA_BATCH_MEM_OP_NODE_PARAMS){ .count = memops->count,
						   .paramArray = memops->ops };
}

CUresult do_cuStreamBatchMemOp_v2(bool per_thread, CUstream handle, unsigned int count,
				  CUstreamBatchMemOpParams *ops, unsigned int flags)
{
	const CUDA_BATCH_MEM_OP_NODE_PARAMS params = {
		.count = count,
		.paramArray = ops,
		.flags = flags,
	};
	CUstream stream = stream_resolve(handle, per_thread);
	struct work *work;
	CUresult error;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	error = memop_work(&params, &work);
	return error ? error : stream_submit(stream, work);
}

CUresult do_cuStreamBatchMemOp(bool per_thread, CUstream stream, unsigned int count,
			       CUstreamBatchMemOpParams *ops, unsigned int flags)
{
	return do_cuStreamBatchMemOp_v2(per_thread, stream, count, ops, flags);
}

static CUresult one(bool per_thread, CUstream stream, int operation, CUdeviceptr address,
		    uint64_t value, unsigned int flags)
{
	CUstreamBatchMemOpParams op = { .waitValue = { .operation = operation,
						       .address = address,
						       .value = value,
						       .flags = flags } };

	return do_cuStreamBatchMemOp_v2(per_thread, stream, 1, &op, 0);
}

CUresult do_cuStreamWriteValue32_v2(bool per_thread, CUstream stream, CUdeviceptr address,
				    uint32_t value, unsigned int flags)
{
	return one(per_thread, stream, CU_STREAM_MEM_OP_WRITE_VALUE_32, address, value, flags);
}

CUresult do_cuStreamWriteValue64_v2(bool per_thread, CUstream stream, CUdeviceptr address,
				    uint64_t value, unsigned int flags)
{
	return one(per_thread, stream, CU_STREAM_MEM_OP_WRITE_VALUE_64, address, value, flags);
}

CUresult do_cuStreamWaitValue32_v2(bool per_thread, CUstream stream, CUdeviceptr address,
				   uint32_t value, unsigned int flags)
{
	return one(per_thread, stream, CU_STREAM_MEM_OP_WAIT_VALUE_32, address, value, flags);
}

CUresult do_cuStreamWaitValue64_v2(bool per_thread, CUstream stream, CUdeviceptr address,
				   uint64_t value, unsigned int flags)
{
	return one(per_thread, stream, CU_STREAM_MEM_OP_WAIT_VALUE_64, address, value, flags);
}
