// SPDX-License-Identifier: GPL-2.0-or-later
/* The nodes of a graph given to a stream one by one. */
#include "graph_nodes.h"

#include "function.h"

bool nodes_can_fit(const struct nodes *nodes, struct device *device, const uint64_t *names)
{
	for (size_t i = 0; i < nodes->count; i++) {
		const struct node *node = &nodes->all[i];

		if (node->name_count &&
		    !launch_can_fit(device, names + node->name_first, node->name_count))
			return false;
		for (uint32_t b = 0; b < node->body_count; b++)
			if (!nodes_can_fit(&node->bodies[b], device, names))
				return false;
	}
	return true;
}

static bool of_few(const CUDA_KERNEL_NODE_PARAMS *p)
{
	return (uint64_t)p->gridDimX * p->gridDimY * p->gridDimZ * p->blockDimX * p->blockDimY *
		       p->blockDimZ <=
	       GRACE_THREADS;
}

static CUresult issue_kernel(const struct node *node, struct device *device, const uint64_t *names,
			     CUstream stream, unsigned int variant)
{
	struct kernel *kernel = node->params;
	const CUDA_KERNEL_NODE_PARAMS *params = &kernel->node;
	const CUlaunchConfig config = {
		.gridDimX = params->gridDimX,
		.gridDimY = params->gridDimY,
		.gridDimZ = params->gridDimZ,
		.blockDimX = params->blockDimX,
		.blockDimY = params->blockDimY,
		.blockDimZ = params->blockDimZ,
		.sharedMemBytes = params->sharedMemBytes,
		.hStream = stream,
		.attrs = kernel->attributes,
		.numAttrs = kernel->attribute_count,
	};
	struct launch launch = { .what = { .function = function_of_kernel(params),
					   .few = of_few(params) } };
	CUresult result;

	functions_note(launch.what.function, stream);
	result = launch_begin_named(&launch, device, names + node->name_first, node->name_count,
				    stream, variant);
	if (result)
		return result;
	device_count(device, COUNTER_LAUNCHES, 1);
	result = driver.cuLaunchKernelEx[variant](&config, launch.what.function,
						  kernel->params->params, kernel->params->extra);
	launch_end(&launch);
	return result;
}

/*
 * A graph reads memory of the host when the copy's turn comes; a stream may read what
 * is not pinned when it is given the copy.
 */
static bool reads_early(const CUDA_MEMCPY3D *copy)
{
	int type = 0;

	return copy->srcMemoryType == CU_MEMORYTYPE_HOST &&
	       driver.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
					    (CUdeviceptr)copy->srcHost);
}

static CUresult await_turn(CUstream stream, unsigned int variant)
{
	/* A capture of this thread must not forbid it. */
	int relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
	CUresult result;

	driver.cuThreadExchangeStreamCaptureMode(&relaxed);
	result = driver.cuStreamSynchronize[variant](stream);
	driver.cuThreadExchangeStreamCaptureMode(&relaxed);
	return result;
}

bool nodes_read_early(const struct nodes *nodes)
{
	for (size_t i = 0; i < nodes->count; i++) {
		const struct node *node = &nodes->all[i];

		if (node->type == CU_GRAPH_NODE_TYPE_MEMCPY && !node->disabled && node->params &&
		    reads_early(node->params))
			return true;
		for (uint32_t b = 0; b < node->body_count; b++)
			if (nodes_read_early(&node->bodies[b]))
				return true;
	}
	return false;
}

/* Bytes in a row between addresses, which copy.c cuts where it must. */
static bool is_plain(const CUDA_MEMCPY3D *c)
{
	return c->Height == 1 && c->Depth == 1 && !c->srcY && !c->srcZ && !c->dstY && !c->dstZ &&
	       c->srcMemoryType != CU_MEMORYTYPE_ARRAY && c->dstMemoryType != CU_MEMORYTYPE_ARRAY;
}

static CUresult issue_copy(const CUDA_MEMCPY3D *c, CUstream stream, unsigned int variant)
{
	CUresult result = reads_early(c) ? await_turn(stream, variant) : CUDA_SUCCESS;
	CUdeviceptr src, dst;

	if (result)
		return result;
	if (!is_plain(c))
		return hook_cuMemcpy3DAsync_v2(variant, c, stream);
	src = c->srcMemoryType == CU_MEMORYTYPE_HOST ? (CUdeviceptr)c->srcHost : c->srcDevice;
	dst = c->dstMemoryType == CU_MEMORYTYPE_HOST ? (CUdeviceptr)c->dstHost : c->dstDevice;
	return hook_cuMemcpyAsync(variant, dst + c->dstXInBytes, src + c->srcXInBytes,
				  c->WidthInBytes, stream);
}

static CUresult issue_fill(const CUDA_MEMSET_NODE_PARAMS *f, CUstream stream, unsigned int variant)
{
	/* Of one row no pitch is told. */
	bool plain = f->height == 1;

	switch (f->elementSize) {
	case 1:
		return plain ? hook_cuMemsetD8Async(variant, f->dst, (unsigned char)f->value,
						    f->width, stream)
			     : hook_cuMemsetD2D8Async(variant, f->dst, f->pitch,
						      (unsigned char)f->value, f->width, f->height,
						      stream);
	case 2:
		return plain ? hook_cuMemsetD16Async(variant, f->dst, (unsigned short)f->value,
						     f->width, stream)
			     : hook_cuMemsetD2D16Async(variant, f->dst, f->pitch,
						       (unsigned short)f->value, f->width,
						       f->height, stream);
	default:
		return plain ? hook_cuMemsetD32Async(variant, f->dst, f->value, f->width, stream)
			     : hook_cuMemsetD2D32Async(variant, f->dst, f->pitch, f->value,
						       f->width, f->height, stream);
	}
}

static CUresult issue_host(const CUDA_HOST_NODE_PARAMS *host, CUstream stream, unsigned int variant)
{
	return variant ? driver.cuLaunchHostFunc_ptsz(stream, host->fn, host->userData)
		       : driver.cuLaunchHostFunc(stream, host->fn, host->userData);
}

CUresult nodes_issue(const struct nodes *nodes, struct device *device, const uint64_t *names,
		     CUstream stream, unsigned int variant)
{
	CUresult result = CUDA_SUCCESS;

	for (size_t i = 0; !result && i < nodes->count; i++) {
		const struct node *node = &nodes->all[i];
		const CUDA_BATCH_MEM_OP_NODE_PARAMS *memop = node->params;
		const CUDA_EVENT_RECORD_NODE_PARAMS *event = node->params;

		if (node->disabled)
			continue;
		switch (node->type) {
		case CU_GRAPH_NODE_TYPE_KERNEL:
			result = issue_kernel(node, device, names, stream, variant);
			break;
		case CU_GRAPH_NODE_TYPE_MEMCPY:
			result = issue_copy(node->params, stream, variant);
			break;
		case CU_GRAPH_NODE_TYPE_MEMSET:
			result = issue_fill(node->params, stream, variant);
			break;
		case CU_GRAPH_NODE_TYPE_HOST:
			result = issue_host(node->params, stream, variant);
			break;
		case CU_GRAPH_NODE_TYPE_GRAPH:
			result = nodes_issue(&node->bodies[0], device, names, stream, variant);
			break;
		case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
			result = driver_stream_wait(stream, event->event, variant);
			break;
		case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
			result = driver_event_record(event->event, stream, variant);
			break;
		case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
			result = hook_cuStreamBatchMemOp_v2(variant, stream, memop->count,
							    memop->paramArray, memop->flags);
			break;
		default:
			break; /* an empty one: others are bound to the graph */
		}
	}
	return result;
}
