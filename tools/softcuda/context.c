// SPDX-License-Identifier: GPL-2.0-or-later
#include "context.h"

#include <pthread.h>
#include <stdlib.h>

#include "api.gen.h"
#include "capture.h"
#include "device.h"
#include "entry.h"
#include "memory.h"
#include "settings.h"
#include "stream.h"

static pthread_mutex_t context_lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUctx_st *contexts; /* all that ever were; context_lock, entries are never removed */
static CUcontext primaries[MAX_DEVICES];
static uint64_t last_id; /* context_lock */

static atomic_uint_fast64_t last_thread;
static pthread_key_t thread_key;
static __thread struct thread *self;

static void thread_exit(void *argument)
{
	struct thread *thread = argument;

	while (thread->streams && !entry_forked()) {
		struct thread_stream *entry = thread->streams;

		thread->streams = entry->next;
		stream_destroy(entry->stream);
		free(entry);
	}
	free(thread->stack);
	free(thread);
	self = NULL;
}

struct thread *thread_self(void)
{
	if (!self) {
		self = calloc(1, sizeof *self);
		if (!self)
			return NULL;
		self->id = ++last_thread;
		pthread_setspecific(thread_key, self);
	}
	return self;
}

static CUcontext context_create(CUdevice device, bool primary, unsigned int flags)
{
	struct CUctx_st *context = calloc(1, sizeof *context);

	if (!context)
		return NULL;
	context->kind = KIND_CONTEXT;
	context->device = device;
	context->primary = primary;
	context->flags = flags;
	context->destroyed = primary;
	context->legacy = stream_create(context, STREAM_LEGACY, 0);
	if (!context->legacy) {
		free(context);
		return NULL;
	}
	context->limits[0] = 1024; /* stack */
	context->limits[1] = 1 << 20; /* printf FIFO */
	context->limits[2] = 8 << 20; /* malloc heap */
	pthread_mutex_lock(&context_lock);
	context->id = ++last_id;
	context->next = contexts;
	contexts = context;
	pthread_mutex_unlock(&context_lock);
	return context;
}

CUresult contexts_init(int devices)
{
	if (pthread_key_create(&thread_key, thread_exit))
		return CUDA_ERROR_OUT_OF_MEMORY;
	for (int i = 0; i < devices; i++) {
		primaries[i] = context_create(i, true, 0);
		if (!primaries[i])
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return CUDA_SUCCESS;
}

CUcontext context_current(void)
{
	return self && self->depth ? self->stack[self->depth - 1] : NULL;
}

CUresult context_check(CUcontext context)
{
	if (!is_kind(context, KIND_CONTEXT))
		return CUDA_ERROR_INVALID_CONTEXT;
	return context->destroyed ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_SUCCESS;
}

void contexts_wait(void)
{
	struct CUctx_st *context;

	pthread_mutex_lock(&context_lock);
	context = contexts;
	pthread_mutex_unlock(&context_lock);
	for (; context; context = context->next)
		group_wait(&context->group);
}

/* Ends everything that belongs to a context. */
static void tear_down(CUcontext context)
{
	context->destroyed = true;
	group_wait(&context->group);
	memory_free_all(context);
	streams_end(context);
}

static CUresult push(CUcontext context)
{
	struct thread *thread = thread_self();

	if (!thread)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (thread->depth == thread->room) {
		size_t room = thread->room ? 2 * thread->room : 8;
		CUcontext *stack = realloc(thread->stack, room * sizeof *stack);

		if (!stack)
			return CUDA_ERROR_OUT_OF_MEMORY;
		thread->stack = stack;
		thread->room = room;
	}
	thread->stack[thread->depth++] = context;
	return CUDA_SUCCESS;
}

CUresult do_cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice device)
{
	if (!ctx)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&context_lock);
	primaries[device]->refs++;
	primaries[device]->destroyed = false;
	pthread_mutex_unlock(&context_lock);
	*ctx = primaries[device];
	return CUDA_SUCCESS;
}

CUresult do_cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	bool held, last;

	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&context_lock);
	held = primaries[device]->refs > 0;
	last = held && !--primaries[device]->refs;
	pthread_mutex_unlock(&context_lock);
	if (last)
		tear_down(primaries[device]);
	return held ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult do_cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	tear_down(primaries[device]);
	pthread_mutex_lock(&context_lock);
	primaries[device]->destroyed = !primaries[device]->refs;
	pthread_mutex_unlock(&context_lock);
	return CUDA_SUCCESS;
}

CUresult do_cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags)
{
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	primaries[device]->flags = flags;
	return CUDA_SUCCESS;
}

CUresult do_cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
	if (!flags || !active)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*flags = primaries[device]->flags;
	*active = !primaries[device]->destroyed;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxCreate_v2(CUcontext *ctx, unsigned int flags, CUdevice device)
{
	if (!ctx)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*ctx = context_create(device, false, flags);
	return *ctx ? push(*ctx) : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuCtxCreate_v3(CUcontext *ctx, void *affinity, int count, unsigned int flags,
			   CUdevice device)
{
	if (affinity || count)
		return CUDA_ERROR_NOT_SUPPORTED;
	return do_cuCtxCreate_v2(ctx, flags, device);
}

CUresult do_cuCtxCreate_v4(CUcontext *ctx, void *params, unsigned int flags, CUdevice device)
{
	if (params)
		return CUDA_ERROR_NOT_SUPPORTED;
	return do_cuCtxCreate_v2(ctx, flags, device);
}

CUresult do_cuCtxDestroy_v2(CUcontext ctx)
{
	CUresult error = context_check(ctx);

	if (error)
		return error;
	if (ctx->primary)
		return CUDA_ERROR_INVALID_CONTEXT;
	tear_down(ctx);
	if (context_current() == ctx)
		thread_self()->depth--;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxPushCurrent_v2(CUcontext ctx)
{
	CUresult error = context_check(ctx);

	return error ? error : push(ctx);
}

CUresult do_cuCtxPopCurrent_v2(CUcontext *ctx)
{
	CUcontext current = context_current();

	if (!current)
		return CUDA_ERROR_INVALID_CONTEXT;
	thread_self()->depth--;
	if (ctx)
		*ctx = current;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxSetCurrent(CUcontext ctx)
{
	CUresult error = ctx ? context_check(ctx) : CUDA_SUCCESS;

	if (error)
		return error;
	if (context_current())
		thread_self()->depth--;
	return ctx ? push(ctx) : CUDA_SUCCESS;
}

CUresult do_cuCtxGetCurrent(CUcontext *ctx)
{
	if (!ctx)
		return CUDA_ERROR_INVALID_VALUE;
	*ctx = context_current();
	return CUDA_SUCCESS;
}

CUresult do_cuCtxSynchronize(void)
{
	return do_cuCtxSynchronize_v2(context_current());
}

CUresult do_cuCtxSynchronize_v2(CUcontext ctx)
{
	CUresult error = context_check(ctx);

	if (!error)
		error = capture_forbids_context(ctx);
	if (!error)
		group_wait(&ctx->group);
	return error;
}
