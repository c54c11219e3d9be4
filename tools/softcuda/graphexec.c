// SPDX-License-Identifier: GPL-2.0-or-later
/* Executable graphs: a graph's work put in a row, as it was when it was instantiated. */
#include <stdlib.h>

#include "api.gen.h"
#include "graph.h"
#include "launch.h"
#include "stream.h"

struct CUgraphExec_st {
	enum kind kind;
	size_t count;
	CUgraphNode *nodes; /* which node of the graph each work came from; never followed */
	struct work **items;
	struct work *sequence; /* the items as one */
};

static void exec_free(CUgraphExec exec)
{
	exec->kind = KIND_NONE;
	for (size_t i = 0; i < exec->count; i++)
		work_put(exec->items[i]);
	work_put(exec->sequence);
	free(exec->items);
	free(exec->nodes);
	free(exec);
}

static bool deps_marked(const struct CUgraphNode_st *node)
{
	for (size_t i = 0; i < node->dep_count; i++)
		if (!node->deps[i]->mark)
			return false;
	return true;
}

/*
 * Puts the nodes in an order that respects their dependencies, as near to that
 * of their making as can be. False: they depend on each other in a circle.
 */
static bool put_in_order(CUgraph graph, CUgraphNode *order)
{
	size_t placed = 0, before;

	for (CUgraphNode node = graph->first; node; node = node->next)
		node->mark = false;
	do {
		before = placed;
		for (CUgraphNode node = graph->first; node; node = node->next) {
			if (node->mark || !deps_marked(node))
				continue;
			node->mark = true;
			order[placed++] = node;
		}
	} while (placed > before);
	return placed == graph->count;
}

static CUresult instantiate(CUgraphExec *exec, CUgraph graph)
{
	struct CUgraphExec_st *made;

	if (!exec || !is_kind(graph, KIND_GRAPH))
		return CUDA_ERROR_INVALID_VALUE;
	made = calloc(1, sizeof *made);
	if (!made)
		return CUDA_ERROR_OUT_OF_MEMORY;
	/* One more than needed: an empty graph is a graph. */
	made->nodes = calloc(graph->count + 1, sizeof *made->nodes);
	made->items = calloc(graph->count + 1, sizeof *made->items);
	if (!made->nodes || !made->items) {
		exec_free(made);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (!put_in_order(graph, made->nodes)) {
		exec_free(made);
		return CUDA_ERROR_INVALID_VALUE;
	}
	for (; made->count < graph->count; made->count++)
		made->items[made->count] = work_get(made->nodes[made->count]->work);
	made->sequence = work_sequence(made->items, made->count);
	if (!made->sequence) {
		exec_free(made);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	made->kind = KIND_EXEC;
	*exec = made;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
	enum { AUTO_FREE_ON_LAUNCH = 1, UPLOAD = 2, DEVICE_LAUNCH = 4, USE_NODE_PRIORITY = 8 };

	if (flags & ~(unsigned long long)(AUTO_FREE_ON_LAUNCH | UPLOAD | USE_NODE_PRIORITY))
		return flags == DEVICE_LAUNCH ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
	return instantiate(exec, graph);
}

CUresult do_cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node,
				  char *log, size_t size)
{
	if (error_node)
		*error_node = NULL;
	if (log && size)
		*log = 0;
	return instantiate(exec, graph);
}

CUresult do_cuGraphInstantiateWithParams(bool per_thread, CUgraphExec *exec, CUgraph graph,
					 CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
	enum { INSTANTIATE_SUCCESS = 0, INSTANTIATE_ERROR = 1 };
	CUresult error;

	(void)per_thread;
	if (!params)
		return CUDA_ERROR_INVALID_VALUE;
	error = do_cuGraphInstantiateWithFlags(exec, graph, params->flags);
	params->hErrNode_out = NULL;
	params->result_out = error ? INSTANTIATE_ERROR : INSTANTIATE_SUCCESS;
	return error;
}

CUresult do_cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params)
{
	struct work *work, *old, *sequence;
	size_t i = 0;
	CUresult error;

	if (!is_kind(exec, KIND_EXEC) || !params)
		return CUDA_ERROR_INVALID_VALUE;
	while (i < exec->count && exec->nodes[i] != node)
		i++;
	if (i == exec->count || (int)exec->items[i]->type != params->type)
		return CUDA_ERROR_INVALID_VALUE;
	error = graph_work_of(params, &work);
	if (error)
		return error;
	/* Launches that are under way keep the sequence they have. */
	old = exec->items[i];
	exec->items[i] = work;
	sequence = work_sequence(exec->items, exec->count);
	if (!sequence) {
		exec->items[i] = old;
		work_put(work);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	work_put(old);
	work_put(exec->sequence);
	exec->sequence = sequence;
	return CUDA_SUCCESS;
}

static CUresult set_params(CUgraphExec exec, CUgraphNode node, int type, const void *params,
			   size_t bytes)
{
	CUgraphNodeParams any;

	if (!params)
		return CUDA_ERROR_INVALID_VALUE;
	any = graph_params(type, params, bytes);
	return do_cuGraphExecNodeSetParams(exec, node, &any);
}

CUresult do_cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
					   const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	return set_params(exec, node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult do_cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
					      const CUDA_KERNEL_NODE_PARAMS *params)
{
	return set_params(exec, node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult do_cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node,
					   const CUDA_MEMCPY3D *copy, CUcontext ctx)
{
	(void)ctx;
	return set_params(exec, node, CU_GRAPH_NODE_TYPE_MEMCPY, copy, sizeof *copy);
}

CUresult do_cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
					   const CUDA_MEMSET_NODE_PARAMS *params, CUcontext ctx)
{
	(void)ctx;
	return set_params(exec, node, CU_GRAPH_NODE_TYPE_MEMSET, params, sizeof *params);
}

CUresult do_cuGraphUpload(bool per_thread, CUgraphExec exec, CUstream handle)
{
	if (!is_kind(exec, KIND_EXEC))
		return CUDA_ERROR_INVALID_VALUE;
	return stream_resolve(handle, per_thread) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult do_cuGraphLaunch(bool per_thread, CUgraphExec exec, CUstream handle)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!is_kind(exec, KIND_EXEC))
		return CUDA_ERROR_INVALID_VALUE;
	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	return stream_submit(stream, work_get(exec->sequence));
}

CUresult do_cuGraphExecDestroy(CUgraphExec exec)
{
	if (!is_kind(exec, KIND_EXEC))
		return CUDA_ERROR_INVALID_VALUE;
	exec_free(exec);
	return CUDA_SUCCESS;
}
