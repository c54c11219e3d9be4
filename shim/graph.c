// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nodes of graphs that are made or changed by hand. What they name is fixed then;
 * what is wrong with them the driver says.
 */
#define _GNU_SOURCE
#include <string.h>

#include "launch.h"

static CUresult fix_kernel(const CUDA_KERNEL_NODE_PARAMS *params)
{
	return params ? launch_fix_kernel(params) : CUDA_SUCCESS;
}

/* The first version ends before the fields for kernels without a function. */
static CUresult fix_kernel_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	CUDA_KERNEL_NODE_PARAMS now = { 0 };

	if (!params)
		return CUDA_SUCCESS;
	memcpy(&now, params, sizeof(*params));
	return launch_fix_kernel(&now);
}

static CUresult fix_copy(const CUDA_MEMCPY3D *copy)
{
	return copy ? rows_fix_copy(copy) : CUDA_SUCCESS;
}

static CUresult fix_fill(const CUDA_MEMSET_NODE_PARAMS *params)
{
	return params ? rows_fix_fill(params) : CUDA_SUCCESS;
}

/* Nodes of other types name no memory, or graphs whose own nodes came by here. */
static CUresult fix_node(const CUgraphNodeParams *node)
{
	const void *params = node ? node->reserved1 : NULL;

	if (!node)
		return CUDA_SUCCESS;
	switch (node->type) {
	case CU_GRAPH_NODE_TYPE_KERNEL:
		return launch_fix_kernel(params);
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

CUresult hook_cuGraphAddKernelNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
				   const CUgraphNode *deps, size_t n,
				   const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	CUresult result = fix_kernel_v1(params);

	(void)variant;
	return result ? result : driver.cuGraphAddKernelNode(node, graph, deps, n, params);
}

CUresult hook_cuGraphAddKernelNode_v2(unsigned int variant, CUgraphNode *node, CUgraph graph,
				      const CUgraphNode *deps, size_t n,
				      const CUDA_KERNEL_NODE_PARAMS *params)
{
	CUresult result = fix_kernel(params);

	(void)variant;
	return result ? result : driver.cuGraphAddKernelNode_v2(node, graph, deps, n, params);
}

CUresult hook_cuGraphKernelNodeSetParams(unsigned int variant, CUgraphNode node,
					 const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	CUresult result = fix_kernel_v1(params);

	(void)variant;
	return result ? result : driver.cuGraphKernelNodeSetParams(node, params);
}

CUresult hook_cuGraphKernelNodeSetParams_v2(unsigned int variant, CUgraphNode node,
					    const CUDA_KERNEL_NODE_PARAMS *params)
{
	CUresult result = fix_kernel(params);

	(void)variant;
	return result ? result : driver.cuGraphKernelNodeSetParams_v2(node, params);
}

CUresult hook_cuGraphExecKernelNodeSetParams(unsigned int variant, CUgraphExec exec,
					     CUgraphNode node,
					     const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	CUresult result = fix_kernel_v1(params);

	(void)variant;
	return result ? result : driver.cuGraphExecKernelNodeSetParams(exec, node, params);
}

CUresult hook_cuGraphExecKernelNodeSetParams_v2(unsigned int variant, CUgraphExec exec,
						CUgraphNode node,
						const CUDA_KERNEL_NODE_PARAMS *params)
{
	CUresult result = fix_kernel(params);

	(void)variant;
	return result ? result : driver.cuGraphExecKernelNodeSetParams_v2(exec, node, params);
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

CUresult hook_cuGraphExecMemcpyNodeSetParams(unsigned int variant, CUgraphExec exec,
					     CUgraphNode node, const CUDA_MEMCPY3D *copy,
					     CUcontext ctx)
{
	CUresult result = fix_copy(copy);

	(void)variant;
	return result ? result : driver.cuGraphExecMemcpyNodeSetParams(exec, node, copy, ctx);
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

CUresult hook_cuGraphExecMemsetNodeSetParams(unsigned int variant, CUgraphExec exec,
					     CUgraphNode node,
					     const CUDA_MEMSET_NODE_PARAMS *params, CUcontext ctx)
{
	CUresult result = fix_fill(params);

	(void)variant;
	return result ? result : driver.cuGraphExecMemsetNodeSetParams(exec, node, params, ctx);
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

CUresult hook_cuGraphExecBatchMemOpNodeSetParams(unsigned int variant, CUgraphExec exec,
						 CUgraphNode node,
						 const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	CUresult result = params ? memop_fix(params) : CUDA_SUCCESS;

	(void)variant;
	return result ? result : driver.cuGraphExecBatchMemOpNodeSetParams(exec, node, params);
}

CUresult hook_cuGraphAddNode(unsigned int variant, CUgraphNode *node, CUgraph graph,
			     const CUgraphNode *deps, size_t n, CUgraphNodeParams *params)
{
	CUresult result = fix_node(params);

	(void)variant;
	return result ? result : driver.cuGraphAddNode(node, graph, deps, n, params);
}

CUresult hook_cuGraphAddNode_v2(unsigned int variant, CUgraphNode *node, CUgraph graph,
				const CUgraphNode *deps, const void *edges, size_t n,
				CUgraphNodeParams *params)
{
	CUresult result = fix_node(params);

	(void)variant;
	return result ? result : driver.cuGraphAddNode_v2(node, graph, deps, edges, n, params);
}

CUresult hook_cuGraphNodeSetParams(unsigned int variant, CUgraphNode node,
				   CUgraphNodeParams *params)
{
	CUresult result = fix_node(params);

	(void)variant;
	return result ? result : driver.cuGraphNodeSetParams(node, params);
}

CUresult hook_cuGraphExecNodeSetParams(unsigned int variant, CUgraphExec exec, CUgraphNode node,
				       CUgraphNodeParams *params)
{
	CUresult result = fix_node(params);

	(void)variant;
	return result ? result : driver.cuGraphExecNodeSetParams(exec, node, params);
}
