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

static void node_destroy(CUgraphNode node)
{
	node->kind = KIND_NONE;
	for (unsigned int i = 0; i < node->body_count; i++)
		if (node->bodies[i])
			graph_destroy(node->bodies[i]);
	free(node->bodies);
	work_put(node->work);
	free(node->deps);
	free(node);
}

void graph_destroy(CUgraph graph)
{
	graph->kind = KIND_NONE;
	while (graph->first) {
		CUgraphNode node = graph->first;

		graph->first = node->next;
		node_destroy(node);
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

static CUresult clone_node(CUgraph clone, CUgraphNode node)
{
	CUgraphNode made;
	CUresult error = graph_add(clone, work_get(node->work), NULL, 0, &made);

	if (error)
		return error;
	node->twin = made;
	made->event = node->event;
	made->choice = node->choice;
	if (!node->body_count)
		return CUDA_SUCCESS;
	made->bodies = calloc(node->body_count, sizeof *made->bodies);
	if (!made->bodies)
		return CUDA_ERROR_OUT_OF_MEMORY;
	made->body_count = node->body_count;
	for (unsigned int i = 0; i < node->body_count; i++) {
		made->bodies[i] = graph_clone(node->bodies[i]);
		if (!made->bodies[i])
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return CUDA_SUCCESS;
}

CUgraph graph_clone(CUgraph graph)
{
	CUgraph clone = graph_create();
	bool failed = !clone;

	for (CUgraphNode node = graph->first; node && !failed; node = node->next)
		failed = clone_node(clone, node);
	/* Dependencies may be nodes that were made later. */
	for (CUgraphNode node = graph->first; node && !failed; node = node->next) {
		CUgraphNode made = node->twin;

		failed = !deps_set(&made->deps, &made->dep_count, node->deps, node->dep_count);
		for (size_t i = 0; i < node->dep_count && !failed; i++)
			made->deps[i] = node->deps[i]->twin;
	}
	if (failed) {
		if (clone)
			graph_destroy(clone);
		return NULL;
	}
	for (CUgraphNode node = graph->first; node; node = node->next)
		node->twin->twin = node;
	return clone;
}

CUgraphNode graph_twin(CUgraph clone, CUgraphNode node)
{
	for (CUgraphNode made = clone->first; made; made = made->next) {
		if (made->twin == node)
			return made;
		for (unsigned int i = 0; i < made->body_count; i++) {
			CUgraphNode inner = graph_twin(made->bodies[i], node);

			if (inner)
				return inner;
		}
	}
	return NULL;
}

static bool deps_marked(const struct CUgraphNode_st *node)
{
	for (size_t i = 0; i < node->dep_count; i++)
		if (!node->deps[i]->mark)
			return false;
	return true;
}

CUgraphNode *graph_order(CUgraph graph)
{
	CUgraphNode *order = malloc((graph->count + 1) * sizeof *order);
	size_t placed = 0, before;

	for (CUgraphNode node = graph->first; node; node = node->next)
		node->mark = false;
	do {
		before = placed;
		for (CUgraphNode node = order ? graph->first : NULL; node; node = node->next) {
			if (node->mark || !deps_marked(node))
				continue;
			node->mark = true;
			order[placed++] = node;
		}
	} while (placed > before);
	if (placed == graph->count)
		return order;
	free(order);
	return NULL;
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
	return graph_add(graph, work_empty(CU_GRAPH_NODE_TYPE_EMPTY), deps, n, node);
}

CUresult do_cuGraphAddChildGraphNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
				     size_t n, CUgraph child)
{
	CUgraph *bodies = NULL;
	CUresult error;

	if (!may_add(node, graph, deps, n, child) || !is_kind(child, KIND_GRAPH))
		return CUDA_ERROR_INVALID_VALUE;
	bodies = malloc(sizeof *bodies);
	if (bodies)
		*bodies = graph_clone(child);
	if (!bodies || !*bodies) {
		free(bodies);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	error = graph_add(graph, work_empty(CU_GRAPH_NODE_TYPE_GRAPH), deps, n, node);
	if (error) {
		graph_destroy(*bodies);
		free(bodies);
		return error;
	}
	(*node)->bodies = bodies;
	(*node)->body_count = 1;
	return CUDA_SUCCESS;
}

static CUresult add_event_node(int type, CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
			       size_t n, CUevent event)
{
	CUresult error;

	if (!may_add(node, graph, deps, n, event) || !is_kind(event, KIND_EVENT))
		return CUDA_ERROR_INVALID_VALUE;
	error = graph_add(graph, work_empty(type), deps, n, node);
	if (!error)
		(*node)->event = event;
	return error;
}

CUresult do_cuGraphAddEventRecordNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
				      size_t n, CUevent event)
{
	return add_event_node(CU_GRAPH_NODE_TYPE_EVENT_RECORD, node, graph, deps, n, event);
}

CUresult do_cuGraphAddEventWaitNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
				    size_t n, CUevent event)
{
	return add_event_node(CU_GRAPH_NODE_TYPE_WAIT_EVENT, node, graph, deps, n, event);
}

/*
 * Kernels here cannot set a condition, so its default decides. A handle is that, with
 * what tells it from chance.
 */
#define CONDITION 0x5ca0ull
#define CONDITION_DEFAULT 0x10000ull

CUresult do_cuGraphConditionalHandleCreate(unsigned long long *handle, CUgraph graph, CUcontext ctx,
					   unsigned int value, unsigned int flags)
{
	(void)ctx;
	if (!handle || !is_kind(graph, KIND_GRAPH) || flags & ~CU_GRAPH_COND_ASSIGN_DEFAULT)
		return CUDA_ERROR_INVALID_VALUE;
	*handle = (unsigned long long)value << 32 | CONDITION;
	if (flags)
		*handle |= CONDITION_DEFAULT;
	return CUDA_SUCCESS;
}

static CUresult add_conditional(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t n,
				CUDA_CONDITIONAL_NODE_PARAMS *params)
{
	unsigned int value = params->handle & CONDITION_DEFAULT ? params->handle >> 32 : 0;
	CUgraph *bodies;
	CUresult error;

	if ((params->handle & 0xffff) != CONDITION || !params->size ||
	    (params->type == CU_GRAPH_COND_TYPE_IF && params->size > 2))
		return CUDA_ERROR_INVALID_VALUE;
	if (params->type == CU_GRAPH_COND_TYPE_WHILE) /* it would never end */
		return CUDA_ERROR_NOT_SUPPORTED;
	bodies = calloc(params->size, sizeof *bodies);
	error = bodies ? graph_add(graph, work_empty(CU_GRAPH_NODE_TYPE_CONDITIONAL), deps, n, node)
		       : CUDA_ERROR_OUT_OF_MEMORY;
	if (error) {
		free(bodies);
		return error;
	}
	for (unsigned int i = 0; i < params->size; i++)
		bodies[i] = graph_create();
	(*node)->bodies = params->phGraph_out = bodies;
	(*node)->body_count = params->size;
	(*node)->choice = params->type == CU_GRAPH_COND_TYPE_IF ? !value : value;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphDestroyNode(CUgraphNode node)
{
	CUgraphNode *link;

	if (!is_kind(node, KIND_NODE))
		return CUDA_ERROR_INVALID_VALUE;
	for (CUgraphNode other = node->graph->first; other; other = other->next)
		for (size_t i = 0; i < other->dep_count; i++)
			if (other->deps[i] == node)
				other->deps[i--] = other->deps[--other->dep_count];
	for (link = &node->graph->first; *link != node; link = &(*link)->next)
		;
	*link = node->next;
	if (node->graph->tail == &node->next)
		node->graph->tail = link;
	node->graph->count--;
	node_destroy(node);
	return CUDA_SUCCESS;
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

/* As for nodes. No edge has data. */
CUresult do_cuGraphGetEdges_v2(CUgraph graph, CUgraphNode *from, CUgraphNode *to,
			       CUgraphEdgeData *data, size_t *count)
{
	size_t found = 0, room;

	if (!is_kind(graph, KIND_GRAPH) || !count || !from != !to || (data && !from))
		return CUDA_ERROR_INVALID_VALUE;
	room = from ? *count : 0;
	for (CUgraphNode node = graph->first; node; node = node->next) {
		for (size_t i = 0; i < node->dep_count; i++, found++) {
			if (found >= room)
				continue;
			from[found] = node->deps[i];
			to[found] = node;
			if (data)
				data[found] = (CUgraphEdgeData){ 0 };
		}
	}
	for (size_t i = found; i < room; i++)
		from[i] = to[i] = NULL;
	if (!from || found < *count)
		*count = found;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphGetEdges(CUgraph graph, CUgraphNode *from, CUgraphNode *to, size_t *count)
{
	return do_cuGraphGetEdges_v2(graph, from, to, NULL, count);
}

CUresult do_cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *deps,
			      const void *edges, size_t n, CUgraphNodeParams *params)
{
	struct work *work;
	CUresult error;

	if (!may_add(node, graph, deps, n, params) || edges)
		return CUDA_ERROR_INVALID_VALUE;
	if (params->type == CU_GRAPH_NODE_TYPE_CONDITIONAL)
		return add_conditional(node, graph, deps, n, (void *)params->reserved1);
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
