// SPDX-License-Identifier: GPL-2.0-or-later
/* The nodes that are kept of a graph: setting them, finding them, and what they name. */
#include "graph_nodes.h"

#include <stdlib.h>
#include <string.h>

static void params_free(int type, void *params)
{
	if (params && type == CU_GRAPH_NODE_TYPE_KERNEL)
		free(((struct kernel *)params)->params);
	free(params);
}

static void node_free(struct node *node)
{
	for (uint32_t i = 0; i < node->body_count; i++)
		nodes_free(&node->bodies[i]);
	free(node->bodies);
	params_free(node->type, node->params);
}

void nodes_free(struct nodes *nodes)
{
	for (size_t i = 0; i < nodes->count; i++)
		node_free(&nodes->all[i]);
	free(nodes->all);
	*nodes = (struct nodes){ 0 };
}

struct node *nodes_add(struct nodes *nodes, CUgraphNode handle, int type)
{
	if (nodes->count == nodes->room) {
		size_t room = nodes->room ? 2 * nodes->room : 16;
		struct node *grown = realloc(nodes->all, room * sizeof(*grown));

		if (!grown)
			return NULL;
		nodes->all = grown;
		nodes->room = room;
	}
	nodes->all[nodes->count] =
		(struct node){ .handle = handle, .place = nodes->count, .type = type };
	return &nodes->all[nodes->count++];
}

static CUresult copy_of(const void *params, size_t bytes, void **copy)
{
	*copy = malloc(bytes);
	if (!*copy)
		return CUDA_ERROR_OUT_OF_MEMORY;
	memcpy(*copy, params, bytes);
	return CUDA_SUCCESS;
}

/* Its attributes stay, as they do in the executable graph. */
static CUresult set_kernel(struct node *node, const CUDA_KERNEL_NODE_PARAMS *params)
{
	const struct kernel *old = node->params;
	struct kernel *kernel = calloc(1, sizeof(*kernel));
	CUresult result;

	if (!kernel)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (old)
		*kernel = *old;
	kernel->node = *params;
	kernel->params = NULL;
	result = params_copy(function_of_kernel(params), params->kernelParams, params->extra,
			     &kernel->params);
	if (result == CUDA_ERROR_OUT_OF_MEMORY) {
		free(kernel);
		return result;
	}
	/* What the driver does not tell params.c has said. */
	node->untold = result != CUDA_SUCCESS;
	params_free(node->type, node->params);
	node->params = kernel;
	return CUDA_SUCCESS;
}

static CUresult set_memop(struct node *node, const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	size_t bytes = params->count * sizeof(*params->paramArray);
	CUDA_BATCH_MEM_OP_NODE_PARAMS *copy = malloc(sizeof(*copy) + bytes);

	if (!copy)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*copy = *params;
	copy->paramArray = (CUstreamBatchMemOpParams *)(copy + 1);
	if (bytes)
		memcpy(copy->paramArray, params->paramArray, bytes);
	free(node->params);
	node->params = copy;
	return CUDA_SUCCESS;
}

static CUresult set_child(struct node *node, CUgraph graph)
{
	struct nodes child = { 0 };
	CUresult result = nodes_read(&child, graph);

	if (result)
		return result;
	if (!node->bodies) {
		node->bodies = calloc(1, sizeof(*node->bodies));
		if (!node->bodies) {
			nodes_free(&child);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
		node->body_count = 1;
	}
	nodes_replace(&node->bodies[0], &child);
	return CUDA_SUCCESS;
}

CUresult node_set(struct node *node, const void *params)
{
	void *copy = NULL;
	CUresult result;

	switch (node->type) {
	case CU_GRAPH_NODE_TYPE_KERNEL:
		return set_kernel(node, params);
	case CU_GRAPH_NODE_TYPE_MEMCPY:
		result = copy_of(params, sizeof(CUDA_MEMCPY3D), &copy);
		break;
	case CU_GRAPH_NODE_TYPE_MEMSET:
		result = copy_of(params, sizeof(CUDA_MEMSET_NODE_PARAMS), &copy);
		break;
	case CU_GRAPH_NODE_TYPE_HOST:
		result = copy_of(params, sizeof(CUDA_HOST_NODE_PARAMS), &copy);
		break;
	case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
	case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
		result = copy_of(params, sizeof(CUDA_EVENT_RECORD_NODE_PARAMS), &copy);
		break;
	case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
		return set_memop(node, params);
	case CU_GRAPH_NODE_TYPE_GRAPH:
		return set_child(node, ((const CUDA_CHILD_GRAPH_NODE_PARAMS *)params)->graph);
	default:
		return CUDA_SUCCESS;
	}
	if (result)
		return result;
	free(node->params);
	node->params = copy;
	return CUDA_SUCCESS;
}

/* ---- changing and finding ---- */

/*
 * The driver pairs the nodes of a graph with those of one updated from it as it tells them.
 * Those that are not paired for want of memory are not found when they are changed.
 */
static void keep_handles(struct nodes *nodes, const struct nodes *old)
{
	const struct node **by_place = NULL;

	if (nodes->count == old->count)
		by_place = calloc(old->count + 1, sizeof(*by_place));
	if (!by_place)
		return;
	for (size_t i = 0; i < old->count; i++)
		by_place[old->all[i].place] = &old->all[i];
	for (size_t i = 0; i < nodes->count; i++) {
		const struct node *was = by_place[nodes->all[i].place];

		if (nodes->all[i].type != was->type || nodes->all[i].body_count != was->body_count)
			goto out;
	}
	for (size_t i = 0; i < nodes->count; i++) {
		struct node *node = &nodes->all[i];
		const struct node *was = by_place[node->place];

		node->handle = was->handle;
		node->disabled = was->disabled;
		for (uint32_t b = 0; b < node->body_count; b++)
			keep_handles(&node->bodies[b], &was->bodies[b]);
	}
out:
	free(by_place);
}

void nodes_replace(struct nodes *nodes, struct nodes *by)
{
	keep_handles(by, nodes);
	nodes_free(nodes);
	*nodes = *by;
	*by = (struct nodes){ 0 };
}

struct node *nodes_find(struct nodes *nodes, CUgraphNode handle)
{
	for (size_t n = 0; n < nodes->count; n++) {
		size_t i = (nodes->hint + n) % nodes->count;

		if (nodes->all[i].handle == handle) {
			nodes->hint = i;
			return &nodes->all[i];
		}
	}
	for (size_t i = 0; i < nodes->count; i++) {
		for (uint32_t b = 0; b < nodes->all[i].body_count; b++) {
			struct node *node = nodes_find(&nodes->all[i].bodies[b], handle);

			if (node)
				return node;
		}
	}
	return NULL;
}

const char *nodes_bound(const struct nodes *nodes)
{
	const char *bound = nodes->bound;

	for (size_t i = 0; !bound && i < nodes->count; i++) {
		const struct node *node = &nodes->all[i];

		bound = node->bound;
		if (!bound && node->untold)
			bound = "a kernel whose parameters the driver does not tell";
		for (uint32_t b = 0; !bound && b < node->body_count; b++)
			bound = nodes_bound(&node->bodies[b]);
	}
	return bound;
}

bool nodes_unseen(const struct nodes *nodes)
{
	for (size_t i = 0; i < nodes->count; i++) {
		const struct node *node = &nodes->all[i];

		if (node->unseen)
			return true;
		for (uint32_t b = 0; b < node->body_count; b++)
			if (nodes_unseen(&node->bodies[b]))
				return true;
	}
	return false;
}

/* NULL: the driver does not tell it. */
static bool batch_waits(const CUDA_BATCH_MEM_OP_NODE_PARAMS *batch)
{
	bool waits = !batch;

	for (unsigned int i = 0; batch && !waits && i < batch->count; i++)
		waits = batch->paramArray[i].operation == CU_STREAM_MEM_OP_WAIT_VALUE_32 ||
			batch->paramArray[i].operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
	return waits;
}

bool nodes_await(const struct nodes *nodes)
{
	for (size_t i = 0; i < nodes->count; i++) {
		const struct node *node = &nodes->all[i];

		if (node->type == CU_GRAPH_NODE_TYPE_BATCH_MEM_OP && !node->disabled &&
		    batch_waits(node->params))
			return true;
		for (uint32_t b = 0; b < node->body_count; b++)
			if (nodes_await(&node->bodies[b]))
				return true;
	}
	return false;
}

void nodes_scan(struct nodes *nodes, uint64_t low, uint64_t high, params_found found, void *arg,
		const uint32_t *count)
{
	for (size_t i = 0; i < nodes->count; i++) {
		struct node *node = &nodes->all[i];
		const struct kernel *kernel = node->params;

		node->name_first = *count;
		if (node->type == CU_GRAPH_NODE_TYPE_KERNEL && kernel && kernel->params &&
		    !node->disabled)
			params_scan(function_of_kernel(&kernel->node), kernel->params->params,
				    kernel->params->extra, low, high, found, arg);
		node->name_count = *count - node->name_first;
		for (uint32_t b = 0; b < node->body_count; b++)
			nodes_scan(&node->bodies[b], low, high, found, arg, count);
	}
}

void nodes_ranges(const struct nodes *nodes, range_found found, void *arg)
{
	for (size_t i = 0; i < nodes->count; i++) {
		const struct node *node = &nodes->all[i];
		const CUDA_BATCH_MEM_OP_NODE_PARAMS *memop = node->params;
		struct extent sides[2];

		for (uint32_t b = 0; b < node->body_count; b++)
			nodes_ranges(&node->bodies[b], found, arg);
		if (!node->params || node->disabled)
			continue;
		switch (node->type) {
		case CU_GRAPH_NODE_TYPE_MEMCPY:
			rows_of_copy(node->params, sides);
			found(arg, sides[0]);
			found(arg, sides[1]);
			break;
		case CU_GRAPH_NODE_TYPE_MEMSET:
			found(arg, rows_of_fill(node->params));
			break;
		case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
			for (unsigned int v = 0; v < memop->count; v++)
				found(arg, memop_value(&memop->paramArray[v]));
			break;
		default:
			break;
		}
	}
}
