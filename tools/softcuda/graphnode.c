// SPDX-License-Identifier: GPL-2.0-or-later
/* What the nodes of graphs do: asked for, and changed. */
#include "graph.h"

#include <string.h>

#include "api.gen.h"
#include "copy.h"
#include "launch.h"
#include "memop.h"

static bool is_node(CUgraphNode node, int type)
{
	return is_kind(node, KIND_NODE) && node->work->type == type;
}

CUresult do_cuGraphNodeGetType(CUgraphNode node, int *type)
{
	if (!is_kind(node, KIND_NODE) || !type)
		return CUDA_ERROR_INVALID_VALUE;
	*type = node->work->type;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS *params)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_KERNEL) || !params)
		return CUDA_ERROR_INVALID_VALUE;
	launch_params_of_work(node->work, params);
	return CUDA_SUCCESS;
}

CUresult do_cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	CUDA_KERNEL_NODE_PARAMS now;

	if (!is_node(node, CU_GRAPH_NODE_TYPE_KERNEL) || !params)
		return CUDA_ERROR_INVALID_VALUE;
	launch_params_of_work(node->work, &now);
	memcpy(params, &now, sizeof *params);
	return CUDA_SUCCESS;
}

CUresult do_cuGraphKernelNodeGetAttribute(CUgraphNode node, int attribute, void *value)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_KERNEL) || !value)
		return CUDA_ERROR_INVALID_VALUE;
	return launch_attribute_of_work(node->work, attribute, value);
}

CUresult do_cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D *copy)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_MEMCPY) || !copy)
		return CUDA_ERROR_INVALID_VALUE;
	copy_params_of_work(node->work, copy);
	return CUDA_SUCCESS;
}

CUresult do_cuGraphMemsetNodeGetParams(CUgraphNode node, CUDA_MEMSET_NODE_PARAMS *params)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_MEMSET) || !params)
		return CUDA_ERROR_INVALID_VALUE;
	memset_params_of_work(node->work, params);
	return CUDA_SUCCESS;
}

CUresult do_cuGraphHostNodeGetParams(CUgraphNode node, CUDA_HOST_NODE_PARAMS *params)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_HOST) || !params)
		return CUDA_ERROR_INVALID_VALUE;
	*params = work_host_params(node->work);
	return CUDA_SUCCESS;
}

CUresult do_cuGraphBatchMemOpNodeGetParams(CUgraphNode node, CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP) || !params)
		return CUDA_ERROR_INVALID_VALUE;
	memop_params_of_work(node->work, params);
	return CUDA_SUCCESS;
}

CUresult do_cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *graph)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_GRAPH) || !graph)
		return CUDA_ERROR_INVALID_VALUE;
	*graph = node->bodies[0];
	return CUDA_SUCCESS;
}

CUresult do_cuGraphEventRecordNodeGetEvent(CUgraphNode node, CUevent *event)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_EVENT_RECORD) || !event)
		return CUDA_ERROR_INVALID_VALUE;
	*event = node->event;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphEventWaitNodeGetEvent(CUgraphNode node, CUevent *event)
{
	if (!is_node(node, CU_GRAPH_NODE_TYPE_WAIT_EVENT) || !event)
		return CUDA_ERROR_INVALID_VALUE;
	*event = node->event;
	return CUDA_SUCCESS;
}

CUresult graph_work_of(const CUgraphNodeParams *params, struct work **work)
{
	const void *of_type = params->reserved1;

	switch (params->type) {
	case CU_GRAPH_NODE_TYPE_KERNEL:
		return launch_work_of_node(of_type, work);
	case CU_GRAPH_NODE_TYPE_MEMCPY:
		return copy_work_3d(&((const CUDA_MEMCPY_NODE_PARAMS *)of_type)->copyParams, work);
	case CU_GRAPH_NODE_TYPE_MEMSET:
		return memset_work(of_type, work);
	case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
		return memop_work(of_type, work);
	case CU_GRAPH_NODE_TYPE_HOST: {
		const CUDA_HOST_NODE_PARAMS *host = of_type;

		if (!host->fn)
			return CUDA_ERROR_INVALID_VALUE;
		*work = work_host(host->fn, host->userData);
		return *work ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
	}
	default:
		return CUDA_ERROR_NOT_SUPPORTED;
	}
}

CUgraphNodeParams graph_params(int type, const void *params, size_t bytes)
{
	CUgraphNodeParams node = { .type = type };
	char *of_type = (char *)node.reserved1;

	if (type == CU_GRAPH_NODE_TYPE_MEMCPY)
		of_type += offsetof(CUDA_MEMCPY_NODE_PARAMS, copyParams);
	memcpy(of_type, params, bytes);
	return node;
}

static CUresult set_event(CUgraphNode node, CUevent event)
{
	if (!is_kind(event, KIND_EVENT))
		return CUDA_ERROR_INVALID_VALUE;
	node->event = event;
	return CUDA_SUCCESS;
}

CUresult graph_set_params(CUgraphNode node, const CUgraphNodeParams *params)
{
	const CUDA_EVENT_RECORD_NODE_PARAMS *event = (const void *)params->reserved1;
	struct work *work;
	CUresult error;

	if (node->work->type != params->type)
		return CUDA_ERROR_INVALID_VALUE;
	if (params->type == CU_GRAPH_NODE_TYPE_WAIT_EVENT ||
	    params->type == CU_GRAPH_NODE_TYPE_EVENT_RECORD)
		return set_event(node, event->event);
	error = graph_work_of(params, &work);
	if (error)
		return error;
	if (params->type == CU_GRAPH_NODE_TYPE_KERNEL)
		launch_keep_attributes(work, node->work);
	work_put(node->work);
	node->work = work;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams *params)
{
	if (!is_kind(node, KIND_NODE) || !params)
		return CUDA_ERROR_INVALID_VALUE;
	return graph_set_params(node, params);
}

static CUresult set_params(CUgraphNode node, int type, const void *params, size_t bytes)
{
	CUgraphNodeParams any;

	if (!params)
		return CUDA_ERROR_INVALID_VALUE;
	any = graph_params(type, params, bytes);
	return do_cuGraphNodeSetParams(node, &any);
}

CUresult do_cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	return set_params(node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult do_cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS *params)
{
	return set_params(node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult do_cuGraphMemcpyNodeSetParams(CUgraphNode node, const CUDA_MEMCPY3D *copy)
{
	return set_params(node, CU_GRAPH_NODE_TYPE_MEMCPY, copy, sizeof *copy);
}

CUresult do_cuGraphMemsetNodeSetParams(CUgraphNode node, const CUDA_MEMSET_NODE_PARAMS *params)
{
	return set_params(node, CU_GRAPH_NODE_TYPE_MEMSET, params, sizeof *params);
}
