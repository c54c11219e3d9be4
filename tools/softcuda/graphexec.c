// SPDX-License-Identifier: GPL-2.0-or-later
/* Executable graphs: a graph's work put in a row, as it was when it was instantiated. */
#include <stdlib.h>

#include "api.gen.h"
#include "capture.h"
#include "event.h"
#include "graph.h"
#include "launch.h"
#include "stream.h"

/* A launch gives a queue these, one after the other. */
struct step {
	struct work *work; /* of a row of nodes; NULL: the event */
	CUevent event;
	bool waits; /* for it, instead of recording it */
};

struct CUgraphExec_st {
	enum kind kind;
	CUgraph graph; /* as it was, with the changes since */
	struct step *steps;
	size_t count;
	struct point last; /* the end of the last launch: one is over before the next begins */
};

/* What becomes steps: nodes in their order, those of bodies in place of theirs. */
struct row {
	struct step *steps;
	size_t count, room;
	struct work **items; /* of the step that is being made */
	size_t item_count, item_room;
};

static bool push(void **all, size_t count, size_t *room, size_t size)
{
	void *grown;

	if (count < *room)
		return true;
	grown = realloc(*all, (*room ? 2 * *room : 16) * size);
	if (!grown)
		return false;
	*all = grown;
	*room = *room ? 2 * *room : 16;
	return true;
}

static bool add_step(struct row *row, struct step step)
{
	if (!push((void **)&row->steps, row->count, &row->room, sizeof step))
		return false;
	row->steps[row->count++] = step;
	return true;
}

/* The works so far are one step. */
static bool end_row(struct row *row)
{
	struct work *work;

	if (!row->item_count)
		return true;
	work = work_sequence(row->items, row->item_count);
	row->item_count = 0;
	if (!work)
		return false;
	if (add_step(row, (struct step){ .work = work }))
		return true;
	work_put(work);
	return false;
}

static bool add_nodes(struct row *row, CUgraph graph);

static bool add_node(struct row *row, CUgraphNode node)
{
	bool waits = node->work->type == CU_GRAPH_NODE_TYPE_WAIT_EVENT;

	if (node->disabled)
		return true;
	if (node->work->type == CU_GRAPH_NODE_TYPE_GRAPH)
		return add_nodes(row, node->bodies[0]);
	if (node->work->type == CU_GRAPH_NODE_TYPE_CONDITIONAL)
		return node->choice >= node->body_count ||
		       add_nodes(row, node->bodies[node->choice]);
	if (waits || node->work->type == CU_GRAPH_NODE_TYPE_EVENT_RECORD)
		return end_row(row) && add_step(row, (struct step){ NULL, node->event, waits });
	if (!push((void **)&row->items, row->item_count, &row->item_room, sizeof *row->items))
		return false;
	row->items[row->item_count++] = node->work;
	return true;
}

static bool add_nodes(struct row *row, CUgraph graph)
{
	CUgraphNode *order = graph_order(graph);
	bool added = order;

	for (size_t i = 0; added && i < graph->count; i++)
		added = add_node(row, order[i]);
	free(order);
	return added;
}

static void steps_free(struct step *steps, size_t count)
{
	for (size_t i = 0; i < count; i++)
		work_put(steps[i].work);
	free(steps);
}

/* Steps anew, after a change. Launches that are under way keep the works they have. */
static CUresult arrange(CUgraphExec exec)
{
	struct row row = { 0 };
	bool made = add_nodes(&row, exec->graph) && end_row(&row);

	free(row.items);
	if (!made) {
		steps_free(row.steps, row.count);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	steps_free(exec->steps, exec->count);
	exec->steps = row.steps;
	exec->count = row.count;
	return CUDA_SUCCESS;
}

static void exec_free(CUgraphExec exec)
{
	exec->kind = KIND_NONE;
	if (exec->graph)
		graph_destroy(exec->graph);
	steps_free(exec->steps, exec->count);
	point_put(&exec->last);
	free(exec);
}

static CUresult instantiate(CUgraphExec *exec, CUgraph graph)
{
	struct CUgraphExec_st *made;
	CUgraphNode *order;
	CUresult error;

	if (!exec || !is_kind(graph, KIND_GRAPH))
		return CUDA_ERROR_INVALID_VALUE;
	order = graph_order(graph);
	free(order);
	if (!order)
		return CUDA_ERROR_INVALID_VALUE; /* a circle */
	made = calloc(1, sizeof *made);
	if (!made)
		return CUDA_ERROR_OUT_OF_MEMORY;
	made->graph = graph_clone(graph);
	error = made->graph ? arrange(made) : CUDA_ERROR_OUT_OF_MEMORY;
	if (error) {
		exec_free(made);
		return error;
	}
	made->kind = KIND_EXEC;
	*exec = made;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
	const unsigned long long known = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH |
					 CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD |
					 CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH |
					 CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;

	/* No kernel here launches a graph, but may be told that it could. */
	if (flags & ~known || (flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH &&
			       flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH))
		return CUDA_ERROR_INVALID_VALUE;
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

CUresult do_cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
			       size_t size)
{
	return do_cuGraphInstantiate_v2(exec, graph, error_node, log, size);
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
	CUgraphNode ours;
	CUresult error;

	if (!is_kind(exec, KIND_EXEC) || !params)
		return CUDA_ERROR_INVALID_VALUE;
	ours = graph_twin(exec->graph, node);
	if (!ours)
		return CUDA_ERROR_INVALID_VALUE;
	error = graph_set_params(ours, params);
	return error ? error : arrange(exec);
}

/* Works and events from one graph to another that is like it; the nodes keep what they came from.
 */
static CUresult take_over(CUgraph to, CUgraph from, CUgraphNode *wrong, int *result)
{
	CUgraphNode a, b = from->first;

	*result = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
	*wrong = NULL;
	if (to->count != from->count)
		return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
	for (a = to->first; a; a = a->next, b = b->next) {
		*wrong = b;
		if (a->dep_count != b->dep_count)
			return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
		if (a->work->type != b->work->type || a->body_count != b->body_count) {
			*result = CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
			return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
		}
	}
	for (a = to->first, b = from->first; a; a = a->next, b = b->next) {
		work_put(a->work);
		a->work = work_get(b->work);
		a->event = b->event;
		a->choice = b->choice;
		for (unsigned int i = 0; i < a->body_count; i++) {
			CUresult error = take_over(a->bodies[i], b->bodies[i], wrong, result);

			if (error)
				return error;
		}
	}
	*result = CU_GRAPH_EXEC_UPDATE_SUCCESS;
	*wrong = NULL;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo *info)
{
	CUresult error;

	if (!is_kind(exec, KIND_EXEC) || !is_kind(graph, KIND_GRAPH) || !info)
		return CUDA_ERROR_INVALID_VALUE;
	info->errorFromNode = NULL;
	error = take_over(exec->graph, graph, &info->errorNode, &info->result);
	return error ? error : arrange(exec);
}

CUresult do_cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error_node, int *result)
{
	CUgraphExecUpdateResultInfo info;
	CUresult error;

	if (!error_node || !result)
		return CUDA_ERROR_INVALID_VALUE;
	error = do_cuGraphExecUpdate_v2(exec, graph, &info);
	*error_node = info.errorNode;
	*result = info.result;
	return error;
}

CUresult do_cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph child)
{
	CUgraphNode ours, wrong;
	CUresult error;
	int result;

	if (!is_kind(exec, KIND_EXEC) || !is_kind(child, KIND_GRAPH))
		return CUDA_ERROR_INVALID_VALUE;
	ours = graph_twin(exec->graph, node);
	if (!ours || ours->work->type != CU_GRAPH_NODE_TYPE_GRAPH)
		return CUDA_ERROR_INVALID_VALUE;
	error = take_over(ours->bodies[0], child, &wrong, &result);
	return error ? error : arrange(exec);
}

CUresult do_cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned int enabled)
{
	CUgraphNode ours = is_kind(exec, KIND_EXEC) ? graph_twin(exec->graph, node) : NULL;

	if (!ours || ours->work->type > CU_GRAPH_NODE_TYPE_MEMSET)
		return CUDA_ERROR_INVALID_VALUE;
	ours->disabled = !enabled;
	return arrange(exec);
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

CUresult do_cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node,
					 const CUDA_HOST_NODE_PARAMS *params)
{
	return set_params(exec, node, CU_GRAPH_NODE_TYPE_HOST, params, sizeof *params);
}

CUresult do_cuGraphExecBatchMemOpNodeSetParams(CUgraphExec exec, CUgraphNode node,
					       const CUDA_BATCH_MEM_OP_NODE_PARAMS *params)
{
	return set_params(exec, node, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, params, sizeof *params);
}

CUresult do_cuGraphExecEventRecordNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event)
{
	return set_params(exec, node, CU_GRAPH_NODE_TYPE_EVENT_RECORD, &event, sizeof event);
}

CUresult do_cuGraphExecEventWaitNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event)
{
	return set_params(exec, node, CU_GRAPH_NODE_TYPE_WAIT_EVENT, &event, sizeof event);
}

CUresult do_cuGraphUpload(bool per_thread, CUgraphExec exec, CUstream handle)
{
	if (!is_kind(exec, KIND_EXEC))
		return CUDA_ERROR_INVALID_VALUE;
	return stream_resolve(handle, per_thread) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* Behind what the queue has and, an exec running one launch at a time, behind the last one. */
static CUresult submit_step(const struct step *step, struct queue *queue)
{
	struct work *work;
	struct point after;
	CUresult error;

	if (step->work)
		return queue_submit(queue, step->work, NULL, NULL);
	if (!step->waits)
		return event_record(step->event, queue);
	work = work_empty(CU_GRAPH_NODE_TYPE_EMPTY);
	if (!work)
		return CUDA_ERROR_OUT_OF_MEMORY;
	after = event_point(step->event);
	error = queue_submit(queue, work, &after, NULL);
	point_put(&after);
	work_put(work);
	return error;
}

CUresult do_cuGraphLaunch(bool per_thread, CUgraphExec exec, CUstream handle)
{
	CUstream stream = stream_resolve(handle, per_thread);
	struct work *order;
	CUresult error;

	if (!is_kind(exec, KIND_EXEC))
		return CUDA_ERROR_INVALID_VALUE;
	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	/* What NVIDIA's driver says of a stream that captures (13.0). */
	error = capture_forbids_waiting(stream);
	if (error)
		return error;
	order = work_empty(CU_GRAPH_NODE_TYPE_EMPTY);
	if (!order)
		return CUDA_ERROR_OUT_OF_MEMORY;
	error = queue_submit(stream->queue, order, &exec->last, NULL);
	work_put(order);
	for (size_t i = 0; !error && i < exec->count; i++)
		error = submit_step(&exec->steps[i], stream->queue);
	point_put(&exec->last);
	exec->last = queue_end(stream->queue);
	return error;
}

CUresult do_cuGraphExecDestroy(CUgraphExec exec)
{
	if (!is_kind(exec, KIND_EXEC))
		return CUDA_ERROR_INVALID_VALUE;
	exec_free(exec);
	return CUDA_SUCCESS;
}
