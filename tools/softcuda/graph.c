// SPDX-License-Identifier: GPL-2.0-or-later
#include "graph.h"

#include <stdlib.h>
#include <string.h>

#include "api.gen.h"
#include "copy.h"
#include "launch.h"
#include "memop.h"

CUgraph graph_create(void)
{
	struct CUgraph_st *graph = calloc(1, sizeof *graph);

	if (!graph)
		return NULL;
	graph->kind = KIND_GRAPH;
	graph->tail = &graph->first;
	return graph;
}

void graph_destroy(CUgraph graph)
{
	graph->kind = KIND_NONE;
	while (graph->first) {
		CUgraphNode node = graph->first;

		graph->first = node->next;
		node->kind = KIND_NONE;
		work_put(node->work);
		free(node->deps);
		free(node);
	}
	free(graph);
}

bool deps_set(CUgraphNode **deps, size_t *count, const CUgraphNode *nodes, size_t n)
{
	CUgraphNode *copy = NULL;

	if (n) {
		copy = malloc(n * sizeof *copy);
		if (!copy)
			return false;
		memcpy(copy, nodes, n * sizeof *copy);
	}
	free(*deps);
	*deps = copy;
	*count = n;
	return true;
}

static bool contains(const CUgraphNode *nodes, size_t n, CUgraphNode node)
{
	for (size_t i = 0; i < n; i++)
		if (nodes[i] == node)
			return true;
	return false;
}

bool deps_merge(CUgraphNode **deps, size_t *count, const CUgraphNode *nodes, size_t n)
{
	CUgraphNode *merged;

	if (!n)
		return true;
	merged = realloc(*deps, (*count + n) * sizeof *merged);
	if (!merged)
		return false;
	*deps = merged;
	for (size_t i = 0; i < n; i++)
		if (!contains(merged, *count, nodes[i]))
			merged[(*count)++] = nodes[i];
	return true;
}

bool graph_has(CUgraph graph, const CUgraphNode *deps, size_t count)
{
	if (count && !deps)
		return false;
	for (size_t i = 0; i < count; i++)
		if (!is_kind(deps[i], KIND_NODE) || deps[i]->graph != graph)
			return false;
	return true;
}

CUresult graph_add(CUgraph graph, struct work *work, const CUgraphNode *deps, size_t count,
		   CUgraphNode *node)
{
	struct CUgraphNode_st *added;

	if (!work)
		return CUDA_ERROR_OUT_OF_MEMORY;
	added = calloc(1, sizeof *added);
	if (!added || !deps_set(&added->deps, &added->dep_count, deps, count)) {
		free(added);
		work_put(work);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	added->kind = KIND_NODE;
	added->graph = graph;
	added->work = work;
	*graph->tail = added;
	graph->tail = &added->next;
	graph->count++;
	*node = added;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphCreate(CUgraph *graph, unsigned int flags)
{
	if (!graph || flags)
		return CUDA_ERROR_INVALID_VALUE;
	*graph = graph_create();
	return *graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuGraphDestroy(CUgraph graph)
{
	if (!is_kind(graph, KIND_GRAPH))
		return CUDA_ERROR_INVALID_VALUE;
	graph_destroy(graph);
	return CUDA_SUCCESS;
}

/* What all the functions that add a node check first. */
static bool may_add(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t n,
		    const void *params)
{
	return node && params && is_kind(graph, KIND_GRAPH) && graph_has(graph, deps, n);
}

CUresult do_cuGraphAddKernelNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
				    size_t n, const CUDA_KERNEL_NODE_PARAMS *params)
{
	struct work *work;
	CUresult error;

	if (!may_add(node, graph, deps, n, params))
		return CUDA_ERROR_INVALID_VALUE;
	error = launch_work_of_node(params, &work);
	return error ? error : graph_add(graph, work, deps, n, node);
}

CUresult do_cuGraphAddMemcpyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
				 size_t n, const CUDA_MEMCPY3D *copy, CUcontext ctx)
{
	struct work *work;
	CUresult error;

	(void)ctx;
	if (!may_add(node, graph, deps, n, copy))
		return CUDA_ERROR_INVALID_VALUE;
	error = copy_work_3d(copy, &work);
	return error ? error : graph_add(graph, work, deps, n, node);
}

CUresult do_cuGraphAddMemsetNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
				 size_t n, const CUDA_MEMSET_NODE_PARAMS *params, CUcontext ctx)
{
	struct work *work;
	CUresult error;

	(void)ctx;
	if (!may_add(node, graph, deps, n, params))
		return CUDA_ERROR_INVALID_VALUE;
	error = memset_work(params, &work);
	return error ? error : graph_add(graph, work, deps, n, node);
}

CUresult do_cuGraphAddBatchMemOpNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
				     size_t n, const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	struct work *work;
	CUresult error;

	if (!may_add(node, graph, deps, n, params))
		return CUDA_ERROR_INVALID_VALUE;
	error = memop_work(params, &work);
	return error ? error : graph_add(graph, work, deps, n, node);
}

CUresult do_cuGraphAddHostNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t n,
			       const CUDA_HOST_NODE_PARAMS *params)
{
	if (!may_add(node, graph, deps, n, params) || !params->fn)
		return CUDA_ERROR_INVALID_VALUE;
	return graph_add(graph, work_host(params->fn, params->userData), deps, n, node);
}

CUresult do_cuGraphAddEmptyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t n)
{
	if (!may_add(node, graph, deps, n, node))
		return CUDA_ERROR_INVALID_VALUE;
	return graph_add(graph, work_empty(), deps, n, node);
}

CUresult do_cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
				      const void *edges, size_t n)
{
	if (!is_kind(graph, KIND_GRAPH) || edges || !graph_has(graph, from, n) ||
	    !graph_has(graph, to, n))
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < n; i++)
		if (from[i] == to[i] || contains(to[i]->deps, to[i]->dep_count, from[i]))
			return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < n; i++)
		if (!deps_merge(&to[i]->deps, &to[i]->dep_count, &from[i], 1))
			return CUDA_ERROR_OUT_OF_MEMORY;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
				   size_t n)
{
	return do_cuGraphAddDependencies_v2(graph, from, to, NULL, n);
}

/* With nodes NULL it tells their number; else it fills in up to *count, and NULL beyond the last.
 */
static CUresult list_nodes(CUgraph graph, CUgraphNode *nodes, size_t *count, bool roots)
{
	size_t found = 0;

	if (!is_kind(graph, KIND_GRAPH) || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (CUgraphNode node = graph->first; node; node = node->next) {
		if (roots && node->dep_count)
			continue;
		if (nodes && found < *count)
			nodes[found] = node;
		found++;
	}
	for (size_t i = found; nodes && i < *count; i++)
		nodes[i] = NULL;
	if (!nodes || found < *count)
		*count = found;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
	return list_nodes(graph, nodes, count, false);
}

CUresult do_cuGraphGetRootNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
	return list_nodes(graph, nodes, count, true);
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
	if (!is_kind(node, KIND_NODE) || node->work->type != CU_GRAPH_NODE_TYPE_KERNEL || !params)
		return CUDA_ERROR_INVALID_VALUE;
	launch_params_of_work(node->work, params);
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

CUresult do_cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams *params)
{
	struct work *work;
	CUresult error;

	if (!is_kind(node, KIND_NODE) || !params || (int)node->work->type != params->type)
		return CUDA_ERROR_INVALID_VALUE;
	error = graph_work_of(params, &work);
	if (error)
		return error;
	work_put(node->work);
	node->work = work;
	return CUDA_SUCCESS;
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

CUresult do_cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
			      const void *edges, size_t n, CUgraphNodeParams *params)
{
	struct work *work;
	CUresult error;

	if (!may_add(node, graph, deps, n, params) || edges)
		return CUDA_ERROR_INVALID_VALUE;
	error = graph_work_of(params, &work);
	return error ? error : graph_add(graph, work, deps, n, node);
}

CUresult do_cuGraphAddNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t n,
			   CUgraphNodeParams *params)
{
	return do_cuGraphAddNode_v2(node, graph, deps, NULL, n, params);
}

CUresult do_cuGraphAddKernelNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
				 size_t n, const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
	CUgraphNodeParams any;

	if (!params)
		return CUDA_ERROR_INVALID_VALUE;
	any = graph_params(CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
	return do_cuGraphAddNode(node, graph, deps, n, &any);
}
