// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nodes that programs make or change by hand, in graphs and in executable ones. What those
 * that copy, set and wait name is fixed before; what is wrong with them the driver says. What
 * kernels name is seen to when their graph is launched (graph_exec.c).
 */
#define _GNU_SOURCE
#include <string.h>

#include "graph_body.h"
#include "graph_exec.h"
#include "launch.h"

/* What a node of these parameters (NULL: the driver will refuse them) copies, sets or waits for
 * stays in VRAM from now on. Nodes of other types name no memory, or graphs whose own nodes came
 * by here. */
static CUresult fix(int type, const void *params)
{
	if (!params)
		return CUDA_SUCCESS;
	switch (type) {
	case CU_GRAPH_NODE_TYPE_MEMCPY:
		return rows_fix_copy(params);
	case CU_GRAPH_NODE_TYPE_MEMSET:
		return rows_fix_fill(params);
	case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
		return memop_fix(params);
	default:
		return CUDA_SUCCESS;
	}
}

/* As the calls for nodes of its type take them; of a memset there is one field more here. */
static const void *params_of(const CUgraphNodeParams *node)
{
	const void *params = node->reserved1;

	if (node->type == CU_GRAPH_NODE_TYPE_MEMCPY)
		return &((const CUDA_MEMCPY_NODE_PARAMS *)params)->copyParams;
	return params;
}

static CUresult fix_node(const CUgraphNodeParams *node)
{
	return node ? fix(node->type, params_of(node)) : CUDA_SUCCESS;
}

CUresult hook_cuGraphAddMemcpyNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
				   const CUgraphNode *deps, size_t n, const CUDA_MEMCPY3D *copy,
				   CUcontext ctx)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_MEMCPY, copy);

	(void)variant;
	return result ? result : driver.cuGraphAddMemcpyNode(node, graph, deps, n, copy, ctx);
}

CUresult hook_cuGraphMemcpyNodeSetParams(unsigned int variant, CUgraphNode node,
					 const CUDA_MEMCPY3D *copy)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_MEMCPY, copy);

	(void)variant;
	return result ? result : driver.cuGraphMemcpyNodeSetParams(node, copy);
}

CUresult hook_cuGraphAddMemsetNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
				   const CUgraphNode *deps, size_t n,
				   const CUDA_MEMSET_NODE_PARAMS *params, CUcontext ctx)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_MEMSET, params);

	(void)variant;
	return result ? result : driver.cuGraphAddMemsetNode(node, graph, deps, n, params, ctx);
}

CUresult hook_cuGraphMemsetNodeSetParams(unsigned int variant, CUgraphNode node,
					 const CUDA_MEMSET_NODE_PARAMS *params)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_MEMSET, params);

	(void)variant;
	return result ? result : driver.cuGraphMemsetNodeSetParams(node, params);
}

CUresult hook_cuGraphAddBatchMemOpNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
				       const CUgraphNode *deps, size_t n,
				       const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, params);

	(void)variant;
	return result ? result : driver.cuGraphAddBatchMemOpNode(node, graph, deps, n, params);
}

CUresult hook_cuGraphBatchMemOpNodeSetParams(unsigned int variant, CUgraphNode node,
					     const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, params);

	(void)variant;
	return result ? result : driver.cuGraphBatchMemOpNodeSetParams(node, params);
}

/* A node was added. */
static CUresult note_bodies(CUgraph graph, CUgraphNode node, const CUgraphNodeParams *params)
{
	if (params->type != CU_GRAPH_NODE_TYPE_CONDITIONAL ||
	    graph_bodies_note(graph, node, (const void *)params->reserved1))
		return CUDA_SUCCESS;
	driver.cuGraphDestroyNode(node);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult hook_cuGraphAddNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
			     const CUgraphNode *deps, size_t n, CUgraphNodeParams *params)
{
	CUresult result = fix_node(params);

	(void)variant;
	if (!result)
		result = driver.cuGraphAddNode(node, graph, deps, n, params);
	return result ? result : note_bodies(graph, *node, params);
}

CUresult hook_cuGraphAddNode_v2(unsigned int variant, CUgraphNode *node, CUgraph graph,
				const CUgraphNode *deps, const void *edges, size_t n,
				CUgraphNodeParams *params)
{
	CUresult result = fix_node(params);

	(void)variant;
	if (!result)
		result = driver.cuGraphAddNode_v2(node, graph, deps, edges, n, params);
	return result ? result : note_bodies(graph, *node, params);
}

CUresult hook_cuGraphNodeSetParams(unsigned int variant, CUgraphNode node,
				   CUgraphNodeParams *params)
{
	CUresult result = fix_node(params);

	(void)variant;
	return result ? result : driver.cuGraphNodeSetParams(node, params);
}

CUresult hook_cuGraphExecKernelNodeSetParams(unsigned int variant, CUgraphExec exec,
					     CUgraphNode node,
					     const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	CUresult result = driver.cuGraphExecKernelNodeSetParams(exec, node, params);
	CUDA_KERNEL_NODE_PARAMS now = { 0 };

	(void)variant;
	if (result)
		return result;
	memcpy(&now, params, sizeof(*params));
	return exec_changed(exec, node, CU_GRAPH_NODE_TYPE_KERNEL, &now);
}

CUresult hook_cuGraphExecKernelNodeSetParams_v2(unsigned int variant, CUgraphExec exec,
						CUgraphNode node,
						const CUDA_KERNEL_NODE_PARAMS *params)
{
	CUresult result = driver.cuGraphExecKernelNodeSetParams_v2(exec, node, params);

	(void)variant;
	return result ? result : exec_changed(exec, node, CU_GRAPH_NODE_TYPE_KERNEL, params);
}

CUresult hook_cuGraphExecMemcpyNodeSetParams(unsigned int variant, CUgraphExec exec,
					     CUgraphNode node, const CUDA_MEMCPY3D *copy,
					     CUcontext ctx)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_MEMCPY, copy);

	(void)variant;
	if (!result)
		result = driver.cuGraphExecMemcpyNodeSetParams(exec, node, copy, ctx);
	return result ? result : exec_changed(exec, node, CU_GRAPH_NODE_TYPE_MEMCPY, copy);
}

CUresult hook_cuGraphExecMemsetNodeSetParams(unsigned int variant, CUgraphExec exec,
					     CUgraphNode node,
					     const CUDA_MEMSET_NODE_PARAMS *params, CUcontext ctx)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_MEMSET, params);

	(void)variant;
	if (!result)
		result = driver.cuGraphExecMemsetNodeSetParams(exec, node, params, ctx);
	return result ? result : exec_changed(exec, node, CU_GRAPH_NODE_TYPE_MEMSET, params);
}

CUresult hook_cuGraphExecBatchMemOpNodeSetParams(unsigned int variant, CUgraphExec exec,
						 CUgraphNode node,
						 const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	CUresult result = fix(CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, params);

	(void)variant;
	if (!result)
		result = driver.cuGraphExecBatchMemOpNodeSetParams(exec, node, params);
	return result ? result : exec_changed(exec, node, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, params);
}

CUresult hook_cuGraphExecHostNodeSetParams(unsigned int variant, CUgraphExec exec, CUgraphNode node,
					   const CUDA_HOST_NODE_PARAMS *params)
{
	CUresult result = driver.cuGraphExecHostNodeSetParams(exec, node, params);

	(void)variant;
	return result ? result : exec_changed(exec, node, CU_GRAPH_NODE_TYPE_HOST, params);
}

CUresult hook_cuGraphExecChildGraphNodeSetParams(unsigned int variant, CUgraphExec exec,
						 CUgraphNode node, CUgraph child)
{
	CUresult result = driver.cuGraphExecChildGraphNodeSetParams(exec, node, child);
	const CUDA_CHILD_GRAPH_NODE_PARAMS params = { .graph = child };

	(void)variant;
	return result ? result : exec_changed(exec, node, CU_GRAPH_NODE_TYPE_GRAPH, &params);
}

CUresult hook_cuGraphExecEventRecordNodeSetEvent(unsigned int variant, CUgraphExec exec,
						 CUgraphNode node, CUevent event)
{
	CUresult result = driver.cuGraphExecEventRecordNodeSetEvent(exec, node, event);
	const CUDA_EVENT_RECORD_NODE_PARAMS params = { event };

	(void)variant;
	return result ? result : exec_changed(exec, node, CU_GRAPH_NODE_TYPE_EVENT_RECORD, &params);
}

CUresult hook_cuGraphExecEventWaitNodeSetEvent(unsigned int variant, CUgraphExec exec,
					       CUgraphNode node, CUevent event)
{
	CUresult result = driver.cuGraphExecEventWaitNodeSetEvent(exec, node, event);
	const CUDA_EVENT_RECORD_NODE_PARAMS params = { event };

	(void)variant;
	return result ? result : exec_changed(exec, node, CU_GRAPH_NODE_TYPE_WAIT_EVENT, &params);
}

CUresult hook_cuGraphExecNodeSetParams(unsigned int variant, CUgraphExec exec, CUgraphNode node,
				       CUgraphNodeParams *params)
{
	CUresult result = fix_node(params);

	(void)variant;
	if (!result)
		result = driver.cuGraphExecNodeSetParams(exec, node, params);
	return result ? result : exec_changed(exec, node, params->type, params_of(params));
}
