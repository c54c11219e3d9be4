// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "graph_nodes.h"

#include <stdlib.h>
#include <string.h>

#include "function.h"
#include "graph_body.h"
#include "log.h"

#define ATTRIBUTES_MOST 4

struct kernel {
	CUDA_KERNEL_NODE_PARAMS node; /* whose parameters are: */
	struct params *params;
	CUlaunchAttribute attributes[ATTRIBUTES_MOST];
	unsigned int attribute_count;
};

static CUfunction function_of_kernel(const CUDA_KERNEL_NODE_PARAMS *params)
{
	return params->func ? params->func : (CUfunction)params->kern;
}

/* ---- reading ---- */

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
	result = set_kernel(node, &params);
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

/* ---- one by one ---- */

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
