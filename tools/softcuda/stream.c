// SPDX-License-Identifier: GPL-2.0-or-later
#include "stream.h"

#include <pthread.h>
#include <stdlib.h>

#include "api.gen.h"
#include "capture.h"
#include "event.h"

/* Guards the contexts' lists of streams, and a stream's end. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

CUstream stream_create(CUcontext context, unsigned int flags, int priority)
{
	struct CUstream_st *stream = calloc(1, sizeof *stream);
	enum queue_order order = QUEUE_BLOCKING;

	if (!stream)
		return NULL;
	if (flags & STREAM_LEGACY)
		order = QUEUE_LEGACY;
	else if (flags & CU_STREAM_NON_BLOCKING)
		order = QUEUE_NON_BLOCKING;
	stream->queue = queue_create(&context->group, order, context->device);
	if (!stream->queue) {
		free(stream);
		return NULL;
	}
	stream->kind = KIND_STREAM;
	stream->context = context;
	stream->flags = flags & ~STREAM_LEGACY;
	stream->priority = priority;
	pthread_mutex_lock(&lock);
	stream->next = context->streams;
	context->streams = stream;
	pthread_mutex_unlock(&lock);
	return stream;
}

/* Work that it still has is done by its queue all the same. */
static void end(CUstream stream)
{
	stream->kind = KIND_NONE;
	queue_close(stream->queue);
	stream->queue = NULL;
}

void stream_destroy(CUstream stream)
{
	CUstream *link;

	capture_forget(stream);
	pthread_mutex_lock(&lock);
	link = &stream->context->streams;
	while (*link != stream)
		link = &(*link)->next;
	*link = stream->next;
	if (stream->kind == KIND_STREAM)
		end(stream);
	pthread_mutex_unlock(&lock);
	free(stream);
}

/* They stay in the list, so that handles that the program still has are refused, not read freed. */
void streams_end(CUcontext context)
{
	pthread_mutex_lock(&lock);
	for (CUstream stream = context->streams; stream; stream = stream->next)
		if (stream->kind == KIND_STREAM && stream != context->legacy)
			end(stream);
	pthread_mutex_unlock(&lock);
}

static CUstream per_thread_stream(CUcontext context)
{
	struct thread *thread = thread_self();
	struct thread_stream *entry;

	for (entry = thread->streams; entry; entry = entry->next)
		if (entry->stream->kind == KIND_STREAM && entry->stream->context == context)
			return entry->stream;
	entry = malloc(sizeof *entry);
	if (!entry)
		return NULL;
	entry->stream = stream_create(context, CU_STREAM_DEFAULT, 0);
	if (!entry->stream) {
		free(entry);
		return NULL;
	}
	entry->next = thread->streams;
	thread->streams = entry;
	return entry->stream;
}

CUstream stream_resolve(CUstream handle, bool per_thread)
{
	CUcontext context = context_current();

	if (handle == CU_STREAM_PER_THREAD || (!handle && per_thread))
		return per_thread_stream(context);
	if (!handle || handle == CU_STREAM_LEGACY)
		return context->legacy;
	return is_kind(handle, KIND_STREAM) ? handle : NULL;
}

CUresult stream_submit(CUstream stream, struct work *work)
{
	CUresult error;

	if (!work)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (capture_running())
		error = capture_submit(stream, work);
	else
		error = queue_submit(stream->queue, work, NULL, NULL);
	work_put(work);
	return error;
}

CUresult stream_submit_and_wait(CUstream stream, struct work *work)
{
	struct point end;
	CUresult error;

	if (!work)
		return CUDA_ERROR_OUT_OF_MEMORY;
	error = capture_forbids_waiting(stream);
	if (!error)
		error = queue_submit(stream->queue, work, NULL, &end);
	work_put(work);
	if (error)
		return error;
	point_wait(&end);
	point_put(&end);
	return CUDA_SUCCESS;
}

CUresult do_cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
	if (!stream || flags & ~(unsigned int)CU_STREAM_NON_BLOCKING)
		return CUDA_ERROR_INVALID_VALUE;
	if (priority > 0)
		priority = 0;
	if (priority < GREATEST_PRIORITY)
		priority = GREATEST_PRIORITY;
	*stream = stream_create(context_current(), flags, priority);
	return *stream ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuStreamCreate(CUstream *stream, unsigned int flags)
{
	return do_cuStreamCreateWithPriority(stream, flags, 0);
}

CUresult do_cuStreamDestroy_v2(CUstream stream)
{
	if (!is_kind(stream, KIND_STREAM))
		return CUDA_ERROR_INVALID_HANDLE;
	stream_destroy(stream);
	return CUDA_SUCCESS;
}

CUresult do_cuStreamSynchronize(bool per_thread, CUstream handle)
{
	CUstream stream = stream_resolve(handle, per_thread);
	struct point end;
	CUresult error;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	error = capture_forbids_waiting(stream);
	if (error)
		return error;
	/* The legacy stream stands for all blocking ones: wait as a piece of its work would. */
	if (queue_order(stream->queue) == QUEUE_LEGACY)
		return stream_submit_and_wait(stream, work_empty(CU_GRAPH_NODE_TYPE_EMPTY));
	end = queue_end(stream->queue);
	point_wait(&end);
	point_put(&end);
	return CUDA_SUCCESS;
}

CUresult do_cuStreamQuery(bool per_thread, CUstream handle)
{
	CUstream stream = stream_resolve(handle, per_thread);
	struct point end;
	CUresult error;
	bool reached;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	error = capture_forbids_waiting(stream);
	if (error)
		return error;
	if (queue_order(stream->queue) == QUEUE_LEGACY)
		return group_reached(&stream->context->group) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
	end = queue_end(stream->queue);
	reached = point_reached(&end);
	point_put(&end);
	return reached ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult do_cuStreamWaitEvent(bool per_thread, CUstream handle, CUevent event, unsigned int flags)
{
	CUstream stream = stream_resolve(handle, per_thread);
	struct point point;
	struct work *work;
	CUresult error;

	if (!stream || !is_kind(event, KIND_EVENT))
		return CUDA_ERROR_INVALID_HANDLE;
	if (flags & ~1u)
		return CUDA_ERROR_INVALID_VALUE;
	if (capture_running() || event->capture) {
		bool captured;

		error = capture_wait(stream, event, &captured);
		if (error || captured)
			return error;
	}
	work = work_empty(CU_GRAPH_NODE_TYPE_EMPTY);
	if (!work)
		return CUDA_ERROR_OUT_OF_MEMORY;
	point = event_point(event);
	error = queue_submit(stream->queue, work, &point, NULL);
	point_put(&point);
	work_put(work);
	return error;
}

CUresult do_cuLaunchHostFunc(bool per_thread, CUstream handle, CUhostFn fn, void *user_data)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!fn)
		return CUDA_ERROR_INVALID_VALUE;
	return stream_submit(stream, work_host(fn, user_data));
}

struct callback {
	struct work work;
	CUstreamCallback fn;
	CUstream handle; /* as the program gave it */
	void *user_data;
};

static void callback_run(struct work *work, const struct place *place)
{
	struct callback *callback = (struct callback *)work;

	(void)place;
	callback->fn(callback->handle, CUDA_SUCCESS, callback->user_data);
}

static void callback_release(struct work *work)
{
	free(work);
}

CUresult do_cuStreamAddCallback(bool per_thread, CUstream handle, CUstreamCallback fn,
				void *user_data, unsigned int flags)
{
	CUstream stream = stream_resolve(handle, per_thread);
	struct callback *callback;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!fn || flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (stream->capture)
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	callback = malloc(sizeof *callback);
	if (!callback)
		return CUDA_ERROR_OUT_OF_MEMORY;
	work_init(&callback->work, CU_GRAPH_NODE_TYPE_HOST, "stream callback", callback_run,
		  callback_release);
	callback->fn = fn;
	callback->handle = handle;
	callback->user_data = user_data;
	return stream_submit(stream, &callback->work);
}

CUresult do_cuStreamGetFlags(bool per_thread, CUstream handle, unsigned int *flags)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!stream || !flags)
		return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
	*flags = stream->flags;
	return CUDA_SUCCESS;
}

CUresult do_cuStreamGetPriority(bool per_thread, CUstream handle, int *priority)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!stream || !priority)
		return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
	*priority = stream->priority;
	return CUDA_SUCCESS;
}

CUresult do_cuStreamGetId(bool per_thread, CUstream handle, unsigned long long *id)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!stream || !id)
		return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
	*id = queue_id(stream->queue);
	return CUDA_SUCCESS;
}

CUresult do_cuStreamGetCtx(bool per_thread, CUstream handle, CUcontext *ctx)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!stream || !ctx)
		return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
	*ctx = stream->context;
	return CUDA_SUCCESS;
}

CUresult do_cuStreamGetDevice(bool per_thread, CUstream handle, CUdevice *device)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!stream || !device)
		return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
	*device = stream->context->device;
	return CUDA_SUCCESS;
}
