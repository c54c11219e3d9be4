// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nodes of graphs that are made or changed by hand. What those that copy, set and wait
 * name is fixed then; what is wrong with them the driver says. What kernels name is
 * seen to when their graph is launched (graph_exec.c).
 */
#define _GNU_SOURCE
#include "graph.h"

#include "graph_body.h"
#include "launch.h"

static CUresult fix_copy(const CUDA_MEMCPY3D *copy)
{
	return copy ? rows_fix_copy(copy) : CUDA_SUCCESS;
}

static CUresult fix_fill(const CUDA_MEMSET_NODE_PARAMS *params)
{
	return params ? rows_fix_fill(params) : CUDA_SUCCESS;
}

CUresult graph_fix_node(const CUgraphNodeParams *node)
{
	const void *params = node ? node->reserved1 : NULL;

	if (!node)
		return CUDA_SUCCESS;
	switch (node->type) {
	case CU_GRAPH_NODE_TYPE_MEMCPY:
		return rows_fix_copy(&((const CUDA_MEMCPY_NODE_PARAMS *)params)->copyParams);
	case CU_GRAPH_NODE_TYPE_MEMSET:
		return rows_fix_fill(params); /* one field longer here */
	case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
		return memop_fix(params);
	default:
		return CUDA_SUCCESS;
	}
}

CUresult hook_cuGraphAddMemcpyNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
				   const CUgraphNode *deps, size_t n, const CUDA_MEMCPY3D *copy,
				   CUcontext ctx)
{
	CUresult result = fix_copy(copy);

	(void)variant;
	return result ? result : driver.cuGraphAddMemcpyNode(node, graph, deps, n, copy, ctx);
}

CUresult hook_cuGraphMemcpyNodeSetParams(unsigned int variant, CUgraphNode node,
					 const CUDA_MEMCPY3D *copy)
{
	CUresult result = fix_copy(copy);

	(void)variant;
	return result ? result : driver.cuGraphMemcpyNodeSetParams(node, copy);
}

CUresult hook_cuGraphAddMemsetNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
				   const CUgraphNode *deps, size_t n,
				   const CUDA_MEMSET_NODE_PARAMS *params, CUcontext ctx)
{
	CUresult result = fix_fill(params);

	(void)variant;
	return result ? result : driver.cuGraphAddMemsetNode(node, graph, deps, n, params, ctx);
}

CUresult hook_cuGraphMemsetNodeSetParams(unsigned int variant, CUgraphNode node,
					 const CUDA_MEMSET_NODE_PARAMS *params)
{
	CUresult result = fix_fill(params);

	(void)variant;
	return result ? result : driver.cuGraphMemsetNodeSetParams(node, params);
}

CUresult hook_cuGraphAddBatchMemOpNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
				       const CUgraphNode *deps, size_t n,
				       const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	CUresult result = params ? memop_fix(params) : CUDA_SUCCESS;

	(void)variant;
	return result ? result : driver.cuGraphAddBatchMemOpNode(node, graph, deps, n, params);
}

CUresult hook_cuGraphBatchMemOpNodeSetParams(unsigned int variant, CUgraphNode node,
					     const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	CUresult result = params ? memop_fix(params) : CUDA_SUCCESS;

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
	CUresult result = graph_fix_node(params);

	(void)variant;
	if (!result)
		result = driver.cuGraphAddNode(node, graph, deps, n, params);
	return result ? result : note_bodies(graph, *node, params);
}

CUresult hook_cuGraphAddNode_v2(unsigned int variant, CUgraphNode *node, CUgraph graph,
				const CUgraphNode *deps, const void *edges, size_t n,
				CUgraphNodeParams *params)
{
	CUresult result = graph_fix_node(params);

	(void)variant;
	if (!result)
		result = driver.cuGraphAddNode_v2(node, graph, deps, edges, n, params);
	return result ? result : note_bodies(graph, *node, params);
}

CUresult hook_cuGraphNodeSetParams(unsigned int variant, CUgraphNode node,
				   CUgraphNodeParams *params)
{
	CUresult result = graph_fix_node(params);

	(void)variant;
	return result ? result : driver.cuGraphNodeSetParams(node, params);
}
