// SPDX-License-Identifier: GPL-2.0-or-later
/* Reading a graph: its nodes as the driver tells them, in an order that respects the edges. */
#include "graph_nodes.h"

#include <stdlib.h>
#include <string.h>

#include "graph_body.h"
#include "log.h"

/* How it is spread over the device must be as its code expects; the rest are hints. */
static void read_attributes(struct node *node)
{
	static const int wanted[] = {
		CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
		CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
		CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION,
		CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN,
	};
	struct kernel *kernel = node->params;
	char updatable[sizeof(kernel->attributes[0].value)] = { 0 };
	int first;

	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
		CUlaunchAttribute *a = &kernel->attributes[kernel->attribute_count];

		*a = (CUlaunchAttribute){ .id = wanted[i] };
		if (driver.cuGraphKernelNodeGetAttribute(node->handle, a->id, a->value))
			continue; /* not on this device, or not by this driver */
		memcpy(&first, a->value, sizeof(first));
		kernel->attribute_count += first != 0;
	}
	if (driver.cuGraphKernelNodeGetAttribute(
		    node->handle, CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE, updatable))
		return;
	memcpy(&first, updatable, sizeof(first));
	if (first) {
		node->unseen = true;
		node->bound = "a kernel that the device may change";
	}
}

static CUresult read_kernel(struct node *node)
{
	CUDA_KERNEL_NODE_PARAMS params = { 0 };
	CUcontext current = NULL;
	CUresult result = driver.cuGraphKernelNodeGetParams_v2(node->handle, &params);

	/* Drivers before CUDA 12 fill in as much as they know. */
	if (result)
		result = driver.cuGraphKernelNodeGetParams(node->handle, (void *)&params);
	if (result) {
		log_warn("the driver does not tell a graph's kernel (%s): what it reads cannot be "
			 "seen",
			 driver_error(result));
		node->bound = "a kernel that the driver does not tell";
		return CUDA_SUCCESS;
	}
	result = node_set(node, &params);
	if (result)
		return result;
	read_attributes(node);
	driver.cuCtxGetCurrent(&current);
	if (params.ctx && current && params.ctx != current && !node->bound)
		node->bound = "kernels of another context";
	return CUDA_SUCCESS;
}

static CUresult read_conditional(struct node *node)
{
	CUgraph *bodies = graph_bodies(node->handle, &node->body_count);
	CUresult result = CUDA_SUCCESS;

	node->bound = "a conditional node";
	if (bodies)
		node->bodies = calloc(node->body_count + 1, sizeof(*node->bodies));
	else
		log_warn("a conditional node of a graph is not known: what runs in it cannot be "
			 "seen");
	if (!node->bodies) {
		node->body_count = 0;
		result = bodies ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
	}
	for (uint32_t i = 0; !result && i < node->body_count; i++)
		result = nodes_read(&node->bodies[i], bodies[i]);
	free(bodies);
	return result;
}

/* What the driver does not tell of a node that has nothing to be held only keeps it from being
 * issued. */
static CUresult read_node(struct node *node)
{
	union {
		CUDA_MEMCPY3D copy;
		CUDA_MEMSET_NODE_PARAMS fill;
		CUDA_HOST_NODE_PARAMS host;
		CUDA_BATCH_MEM_OP_NODE_PARAMS memop;
		CUDA_EVENT_RECORD_NODE_PARAMS event;
		CUDA_CHILD_GRAPH_NODE_PARAMS child;
	} params;
	CUgraphNode handle = node->handle;
	CUresult result;

	memset(&params, 0, sizeof(params));
	switch (node->type) {
	case CU_GRAPH_NODE_TYPE_KERNEL:
		return read_kernel(node);
	case CU_GRAPH_NODE_TYPE_MEMCPY:
		result = driver.cuGraphMemcpyNodeGetParams(handle, &params.copy);
		break;
	case CU_GRAPH_NODE_TYPE_MEMSET:
		result = driver.cuGraphMemsetNodeGetParams(handle, &params.fill);
		break;
	case CU_GRAPH_NODE_TYPE_HOST:
		result = driver.cuGraphHostNodeGetParams(handle, &params.host);
		break;
	case CU_GRAPH_NODE_TYPE_GRAPH:
		result = driver.cuGraphChildGraphNodeGetGraph(handle, &params.child.graph);
		break;
	case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
		result = driver.cuGraphEventWaitNodeGetEvent(handle, &params.event.event);
		break;
	case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
		result = driver.cuGraphEventRecordNodeGetEvent(handle, &params.event.event);
		break;
	case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
		result = driver.cuGraphBatchMemOpNodeGetParams(handle, &params.memop);
		break;
	case CU_GRAPH_NODE_TYPE_EMPTY:
		return CUDA_SUCCESS;
	case CU_GRAPH_NODE_TYPE_CONDITIONAL:
		return read_conditional(node);
	case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
	case CU_GRAPH_NODE_TYPE_MEM_FREE:
		node->bound = "memory of its own";
		return CUDA_SUCCESS;
	default:
		node->bound = "nodes that belong to a graph alone";
		return CUDA_SUCCESS;
	}
	if (result) {
		node->bound = "a node that the driver does not tell";
		return CUDA_SUCCESS;
	}
	return node_set(node, &params);
}

/* ---- order ---- */

struct place {
	CUgraphNode handle;
	size_t index;
};

static int by_handle(const void *left, const void *right)
{
	const struct place *a = left, *b = right;

	return a->handle < b->handle ? -1 : a->handle > b->handle;
}

static size_t index_of(const struct place *places, size_t count, CUgraphNode handle)
{
	const struct place key = { .handle = handle };
	const struct place *found = bsearch(&key, places, count, sizeof(*places), by_handle);

	return found ? found->index : count;
}

/* The edges of a graph, to be freed; NULL: no memory. *told: they are all of them. */
static CUgraphNode *edges_of(CUgraph graph, size_t *count, bool *told)
{
	CUgraphNode *from;
	CUgraphEdgeData *data = NULL;
	bool plain;

	*count = 0;
	plain = driver.cuGraphGetEdges_v2(graph, NULL, NULL, NULL, count) != CUDA_SUCCESS;
	*told = !plain || !driver.cuGraphGetEdges(graph, NULL, NULL, count);
	if (!*told)
		*count = 0;
	from = malloc((2 * *count + 1) * sizeof(*from));
	if (!plain) {
		/* Without a place for their data edges that have some are not told. */
		data = malloc((*count + 1) * sizeof(*data));
		if (!data) {
			free(from);
			return NULL;
		}
	}
	if (from && *count &&
	    (plain ? driver.cuGraphGetEdges(graph, from, from + *count, count)
		   : driver.cuGraphGetEdges_v2(graph, from, from + *count, data, count))) {
		*told = false;
		*count = 0;
	}
	free(data);
	return from;
}

/*
 * Put the handles in an order that respects the edges: each behind those it depends on,
 * and else as they are, which for what was captured is the order of the program.
 * indices: where each was. *ordered: the edges are told, are those of these nodes and form
 * no circle.
 */
static CUresult put_in_order(CUgraph graph, CUgraphNode *handles, size_t *indices, size_t count,
			     bool *ordered)
{
	struct place *places = malloc((count + 1) * sizeof(*places));
	size_t *first = calloc(count + 2, sizeof(*first)), *on = NULL, *stack = NULL;
	CUgraphNode *sorted = malloc((count + 1) * sizeof(*sorted)), *edges;
	unsigned char *state = calloc(count + 1, 1); /* 1: on the stack, 2: placed */
	size_t edge_count, placed = 0, from, to;
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

	edges = edges_of(graph, &edge_count, ordered);
	on = malloc((edge_count + 1) * sizeof(*on));
	stack = malloc((edge_count + count + 1) * sizeof(*stack));
	if (!places || !first || !sorted || !state || !edges || !on || !stack)
		goto out;
	for (size_t i = 0; i < count; i++)
		places[i] = (struct place){ handles[i], i };
	qsort(places, count, sizeof(*places), by_handle);
	/* What each depends on: on[first[i]] to on[first[i + 1] - 1]. */
	for (size_t e = 0; e < edge_count; e++)
		first[index_of(places, count, edges[edge_count + e]) + 1]++;
	for (size_t i = 0; i <= count; i++)
		first[i + 1] += first[i];
	for (size_t e = edge_count; e-- > 0;) {
		to = index_of(places, count, edges[edge_count + e]);
		on[--first[to + 1]] = index_of(places, count, edges[e]);
	}
	for (size_t i = 0; i <= count; i++)
		first[i] = first[i + 1];
	for (size_t i = 0; i < count; i++) {
		size_t depth = 0;

		if (!state[i])
			stack[depth++] = i;
		while (depth) {
			size_t top = stack[depth - 1];

			if (state[top]) { /* what it depends on has been placed */
				depth--;
				if (state[top] == 1) {
					indices[placed] = top;
					sorted[placed++] = handles[top];
				}
				state[top] = 2;
				continue;
			}
			state[top] = 1;
			for (size_t e = first[top + 1]; e-- > first[top];) {
				from = on[e];
				if (from < count && !state[from])
					stack[depth++] = from;
				else if (from >= count || state[from] == 1)
					*ordered = false;
			}
		}
	}
	memcpy(handles, sorted, placed * sizeof(*handles));
	result = CUDA_SUCCESS;
out:
	free(places);
	free(first);
	free(on);
	free(stack);
	free(sorted);
	free(state);
	free(edges);
	return result;
}

CUresult nodes_read(struct nodes *nodes, CUgraph graph)
{
	CUgraphNode *handles;
	size_t *places, count = 0;
	CUresult result = driver.cuGraphGetNodes(graph, NULL, &count);
	bool ordered;

	*nodes = (struct nodes){ 0 };
	handles = malloc((count + 1) * sizeof(*handles));
	places = malloc((count + 1) * sizeof(*places));
	if (!handles || !places) {
		free(handles);
		free(places);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (!result && count)
		result = driver.cuGraphGetNodes(graph, handles, &count);
	if (result) {
		free(handles);
		free(places);
		log_warn("the driver does not tell a graph's nodes (%s): what they read cannot be "
			 "seen",
			 driver_error(result));
		nodes->bound = "nodes that the driver does not tell";
		return CUDA_SUCCESS;
	}
	result = put_in_order(graph, handles, places, count, &ordered);
	for (size_t i = 0; !result && i < count; i++) {
		int type = CU_GRAPH_NODE_TYPE_EMPTY;
		struct node *node;

		result = driver.cuGraphNodeGetType(handles[i], &type);
		node = result ? NULL : nodes_add(nodes, handles[i], type);
		if (node)
			node->place = places[i];
		result = node ? read_node(node) : CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (!ordered)
		nodes->bound = "edges that the driver does not tell";
	free(handles);
	free(places);
	if (result)
		nodes_free(nodes);
	return result;
}
