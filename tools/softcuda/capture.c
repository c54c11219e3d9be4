// SPDX-License-Identifier: GPL-2.0-or-later
#include "capture.h"

#include <pthread.h>
#include <stdlib.h>

#include "api.gen.h"
#include "graph.h"

/* A capture, from its beginning on one stream until it ends on the same. */
struct capture {
	struct capture *next;
	uint64_t id;
	int mode;
	uint64_t thread; /* that began it */
	CUgraph graph;
	bool graph_ours; /* not given by the program */
	bool invalid;
	CUstream origin;
	CUstream streams; /* those that capture into it */
};

/* Guards captures, what streams and events have of them, and graphs being captured. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct capture *captures;
static atomic_uint running;
static uint64_t last_id;

bool capture_running(void)
{
	return atomic_load_explicit(&running, memory_order_acquire) > 0;
}

static CUresult invalidate(struct capture *capture, CUresult error)
{
	capture->invalid = true;
	return error;
}

static void join(struct capture *capture, CUstream stream)
{
	stream->next_captured = capture->streams;
	capture->streams = stream;
	stream->capture = capture;
}

static void leave(CUstream stream)
{
	CUstream *link = &stream->capture->streams;

	while (*link != stream)
		link = &(*link)->next_captured;
	*link = stream->next_captured;
	stream->capture = NULL;
	deps_set(&stream->deps, &stream->dep_count, NULL, 0);
}

/* Ends a capture; its graph is the caller's from then on. */
static CUgraph dissolve(struct capture *capture)
{
	struct capture **link = &captures;
	CUgraph graph = capture->graph;

	while (capture->streams)
		leave(capture->streams);
	while (*link != capture)
		link = &(*link)->next;
	*link = capture->next;
	free(capture);
	running--;
	return graph;
}

CUresult capture_forbids(void)
{
	struct thread *thread = thread_self();
	CUresult error = CUDA_SUCCESS;

	if (!capture_running() || thread->capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_SUCCESS;
	pthread_mutex_lock(&lock);
	for (struct capture *capture = captures; capture; capture = capture->next) {
		bool own = capture->thread == thread->id &&
			   capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
		bool global = thread->capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
			      capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;

		if (own || global)
			error = invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	}
	pthread_mutex_unlock(&lock);
	return error;
}

/* The legacy stream orders itself with all blocking ones, which a capture cannot see. */
static CUresult forbids_legacy(CUstream legacy)
{
	CUresult error = CUDA_SUCCESS;

	if (queue_order(legacy->queue) != QUEUE_LEGACY)
		return CUDA_SUCCESS;
	for (struct capture *capture = captures; capture; capture = capture->next)
		for (CUstream stream = capture->streams; stream; stream = stream->next_captured)
			if (stream->context == legacy->context &&
			    queue_order(stream->queue) == QUEUE_BLOCKING)
				error = invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
	return error;
}

CUresult capture_forbids_waiting(CUstream stream)
{
	CUresult error;

	if (!capture_running())
		return CUDA_SUCCESS;
	pthread_mutex_lock(&lock);
	if (stream->capture)
		error = invalidate(stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	else
		error = forbids_legacy(stream);
	pthread_mutex_unlock(&lock);
	return error;
}

CUresult capture_forbids_context(CUcontext context)
{
	CUresult error = CUDA_SUCCESS;

	if (!capture_running())
		return CUDA_SUCCESS;
	pthread_mutex_lock(&lock);
	for (struct capture *capture = captures; capture; capture = capture->next)
		if (capture->origin->context == context)
			error = invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	pthread_mutex_unlock(&lock);
	return error;
}

static CUresult add_node(CUstream stream, struct work *work)
{
	struct capture *capture = stream->capture;
	CUgraphNode node;
	CUresult error;

	if (capture->invalid)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	error = graph_add(capture->graph, work_get(work), stream->deps, stream->dep_count, &node);
	if (!error && !deps_set(&stream->deps, &stream->dep_count, &node, 1))
		error = CUDA_ERROR_OUT_OF_MEMORY;
	return error ? invalidate(capture, error) : CUDA_SUCCESS;
}

CUresult capture_submit(CUstream stream, struct work *work)
{
	bool captured;
	CUresult error;

	pthread_mutex_lock(&lock);
	captured = stream->capture;
	error = captured ? add_node(stream, work) : forbids_legacy(stream);
	pthread_mutex_unlock(&lock);
	if (error || captured)
		return error;
	return queue_submit(stream->queue, work, NULL, NULL);
}

CUresult capture_record(CUstream stream, CUevent event, bool *captured)
{
	CUresult error;

	pthread_mutex_lock(&lock);
	*captured = stream->capture;
	if (!stream->capture) {
		error = forbids_legacy(stream);
		if (!error)
			event->capture = 0;
	} else if (stream->capture->invalid) {
		error = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	} else if (!deps_set(&event->deps, &event->dep_count, stream->deps, stream->dep_count)) {
		error = CUDA_ERROR_OUT_OF_MEMORY;
	} else {
		error = CUDA_SUCCESS;
		event->capture = stream->capture->id;
	}
	pthread_mutex_unlock(&lock);
	return error;
}

static struct capture *find(uint64_t id)
{
	struct capture *capture = captures;

	while (capture && capture->id != id)
		capture = capture->next;
	return capture;
}

static CUresult wait_in_capture(CUstream stream, CUevent event)
{
	struct capture *capture = find(event->capture);

	if (stream->capture && stream->capture->invalid)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	if (!event->capture)
		return invalidate(stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
	if (!capture)
		return CUDA_ERROR_CAPTURED_EVENT;
	if (capture->invalid)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	if (queue_order(stream->queue) == QUEUE_LEGACY)
		return invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
	if (stream->capture && stream->capture != capture) {
		invalidate(stream->capture, CUDA_SUCCESS);
		return invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_MERGE);
	}
	if (!deps_merge(&stream->deps, &stream->dep_count, event->deps, event->dep_count))
		return invalidate(capture, CUDA_ERROR_OUT_OF_MEMORY);
	if (!stream->capture)
		join(capture, stream);
	return CUDA_SUCCESS;
}

CUresult capture_wait(CUstream stream, CUevent event, bool *captured)
{
	CUresult error;

	pthread_mutex_lock(&lock);
	*captured = stream->capture || event->capture;
	error = *captured ? wait_in_capture(stream, event) : forbids_legacy(stream);
	pthread_mutex_unlock(&lock);
	return error;
}

void capture_forget(CUstream stream)
{
	struct capture *capture;
	CUgraph graph = NULL;

	if (!stream->capture)
		return;
	pthread_mutex_lock(&lock);
	capture = stream->capture;
	if (capture && capture->origin == stream) {
		bool ours = capture->graph_ours;

		graph = dissolve(capture);
		if (!ours)
			graph = NULL;
	} else if (capture) {
		capture->invalid = true;
		leave(stream);
	}
	pthread_mutex_unlock(&lock);
	if (graph)
		graph_destroy(graph);
}

static CUresult begin(CUstream stream, int mode, CUgraph graph, const CUgraphNode *deps, size_t n)
{
	struct capture *capture;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	if (queue_order(stream->queue) == QUEUE_LEGACY)
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	if (stream->capture)
		return CUDA_ERROR_ILLEGAL_STATE;
	capture = calloc(1, sizeof *capture);
	if (!capture)
		return CUDA_ERROR_OUT_OF_MEMORY;
	capture->mode = mode;
	capture->thread = thread_self()->id;
	capture->graph = graph ? graph : graph_create();
	capture->graph_ours = !graph;
	capture->origin = stream;
	if (!capture->graph || !deps_set(&stream->deps, &stream->dep_count, deps, n)) {
		if (capture->graph_ours && capture->graph)
			graph_destroy(capture->graph);
		free(capture);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	pthread_mutex_lock(&lock);
	capture->id = ++last_id;
	capture->next = captures;
	captures = capture;
	join(capture, stream);
	running++;
	pthread_mutex_unlock(&lock);
	return CUDA_SUCCESS;
}

CUresult do_cuStreamBeginCapture_v2(bool per_thread, CUstream handle, int mode)
{
	return begin(stream_resolve(handle, per_thread), mode, NULL, NULL, 0);
}

CUresult do_cuStreamBeginCaptureToGraph(bool per_thread, CUstream handle, CUgraph graph,
					const CUgraphNode *deps, const void *edges, size_t n,
					int mode)
{
	if (!is_kind(graph, KIND_GRAPH) || edges || !graph_has(graph, deps, n))
		return CUDA_ERROR_INVALID_VALUE;
	return begin(stream_resolve(handle, per_thread), mode, graph, deps, n);
}

/* Whether all that the other streams captured is waited for by the origin. */
static bool joined(const struct capture *capture)
{
	CUgraph graph = capture->graph;
	CUgraphNode *order = malloc((graph->count + 1) * sizeof *order);
	bool all = true;
	size_t n = 0;

	if (!order)
		return false;
	for (CUgraphNode node = graph->first; node; node = node->next) {
		node->mark = false;
		order[n++] = node;
	}
	for (size_t i = 0; i < capture->origin->dep_count; i++)
		capture->origin->deps[i]->mark = true;
	/* Captured nodes come after what they depend on: one walk from the last to the first. */
	while (n--)
		for (size_t i = 0; order[n]->mark && i < order[n]->dep_count; i++)
			order[n]->deps[i]->mark = true;
	for (CUstream stream = capture->streams; stream; stream = stream->next_captured)
		for (size_t i = 0; i < stream->dep_count; i++)
			all = all && stream->deps[i]->mark;
	free(order);
	return all;
}

static CUresult end(CUstream stream, CUgraph *graph)
{
	struct capture *capture = stream->capture;
	CUresult error = CUDA_SUCCESS;
	bool ours;

	if (!capture)
		return CUDA_ERROR_ILLEGAL_STATE;
	if (capture->origin != stream)
		return invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
	if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != thread_self()->id)
		return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
	if (capture->invalid)
		error = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	else if (!joined(capture))
		error = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
	ours = capture->graph_ours;
	*graph = dissolve(capture);
	if (!error)
		return CUDA_SUCCESS;
	if (ours)
		graph_destroy(*graph);
	*graph = NULL;
	return error;
}

CUresult do_cuStreamEndCapture(bool per_thread, CUstream handle, CUgraph *graph)
{
	CUstream stream = stream_resolve(handle, per_thread);
	CUresult error;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!graph)
		return CUDA_ERROR_INVALID_VALUE;
	*graph = NULL;
	pthread_mutex_lock(&lock);
	error = end(stream, graph);
	pthread_mutex_unlock(&lock);
	return error;
}

CUresult do_cuStreamGetCaptureInfo_v3(bool per_thread, CUstream handle, int *status, uint64_t *id,
				      CUgraph *graph, const CUgraphNode **deps, const void **edges,
				      size_t *count)
{
	CUstream stream = stream_resolve(handle, per_thread);
	struct capture *capture;

	if (!stream || !status)
		return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
	pthread_mutex_lock(&lock);
	capture = stream->capture;
	*status = CU_STREAM_CAPTURE_STATUS_NONE;
	if (capture)
		*status = capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
					   : CU_STREAM_CAPTURE_STATUS_ACTIVE;
	if (*status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
		if (id)
			*id = capture->id;
		if (graph)
			*graph = capture->graph;
		if (deps)
			*deps = stream->deps;
		if (edges)
			*edges = NULL; /* none carries data */
		if (count)
			*count = stream->dep_count;
	}
	pthread_mutex_unlock(&lock);
	return CUDA_SUCCESS;
}

CUresult do_cuStreamGetCaptureInfo_v2(bool per_thread, CUstream handle, int *status, uint64_t *id,
				      CUgraph *graph, const CUgraphNode **deps, size_t *count)
{
	return do_cuStreamGetCaptureInfo_v3(per_thread, handle, status, id, graph, deps, NULL,
					    count);
}

CUresult do_cuStreamIsCapturing(bool per_thread, CUstream handle, int *status)
{
	return do_cuStreamGetCaptureInfo_v3(per_thread, handle, status, NULL, NULL, NULL, NULL,
					    NULL);
}

CUresult do_cuThreadExchangeStreamCaptureMode(int *mode)
{
	struct thread *thread = thread_self();
	int before;

	if (!mode || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL ||
	    *mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	if (!thread)
		return CUDA_ERROR_OUT_OF_MEMORY;
	before = thread->capture_mode;
	thread->capture_mode = *mode;
	*mode = before;
	return CUDA_SUCCESS;
}
