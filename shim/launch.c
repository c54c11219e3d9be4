// SPDX-License-Identifier: GPL-2.0-or-later
/* Launches of kernels: finding what they name. Captures: when there is one. */
#define _GNU_SOURCE
#include "launch.h"

#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "fault.h"
#include "function.h"
#include "gate.h"
#include "log.h"
#include "params.h"

bool launch_captured(CUstream stream, unsigned int variant)
{
	return atomic_load_explicit(&gate_captures, memory_order_acquire) &&
	       driver_capture_status(stream, variant) == CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

CUresult launch_begin(struct launch *launch, struct device *device, struct span *spans,
		      uint32_t count, CUstream stream, unsigned int variant)
{
	CUresult result;

	launch->device = NULL;
	launch->record = NULL;
	launch->stream = stream;
	launch->variant = variant;
	launch->trace = trace_launch_begin(device, launch->what.function, launch->what.shown,
					   stream, variant);
	if (!count) {
		if (launch->trace)
			trace_launch_issue(launch->trace, NULL, launch->captured);
		/* Its time is a part of the pass all the same. */
		launch->record = record_begin(device, launch->what.function, launch->what.shown,
					      spans, 0, stream, variant, launch->captured);
		return CUDA_SUCCESS;
	}
	/* Handles are addresses; neighbours differ in the middle bits. */
	launch->hold.tag = (uint32_t)((launch->what.graph ? (uintptr_t)launch->what.graph
							  : (uintptr_t)launch->what.function) *
					      0x9e3779b97f4a7c15u >>
				      33);
	launch->hold.few = launch->what.few;
	launch->hold.where = launch->captured || launch->what.graph ? HOLD_VRAM
			     : launch->what.function		    ? HOLD_EXCESS
								    : HOLD_APART;
	result = residency_hold(device, spans, count, &launch->hold);
	if (result)
		goto out;
	result = launch->captured ? residency_begin_captured(&launch->hold)
				  : residency_begin(&launch->hold, stream, variant);
	if (result) {
		residency_cancel(device, &launch->hold);
		goto out;
	}
	launch->device = device;
	launch->timed.before = NULL;
	/* Only while it costs something, or to see that it still is little. */
	if (launch->hold.timed.chunks &&
	    (launch->hold.absent || launch->hold.arriving || launch->hold.little.chunks))
		launch->timed.before = timing_mark(&device->mover.timing, stream, variant);
	launch->record = record_begin(device, launch->what.function, launch->what.shown, spans,
				      count, stream, variant, launch->captured);
	if (launch->trace)
		trace_launch_issue(launch->trace, &launch->hold, launch->captured);
	return CUDA_SUCCESS;
out:
	if (launch->trace)
		trace_launch_end(launch->trace);
	launch->trace = NULL;
	return result;
}

void launch_end(struct launch *launch)
{
	if (launch->record)
		record_end(launch->record, launch->stream, launch->variant);
	if (launch->device && launch->timed.before) {
		launch->timed.after =
			timing_mark(&launch->device->mover.timing, launch->stream, launch->variant);
		residency_timed(launch->device, &launch->hold, launch->timed);
	}
	if (launch->device && launch->captured)
		residency_fix(launch->device, &launch->hold);
	else if (launch->device)
		residency_release(launch->device, &launch->hold, launch->stream, launch->variant);
	/* Holding nothing, as it may wait. */
	if (launch->trace)
		trace_launch_end(launch->trace);
}

/* The addresses a launch names, gathered before any lock is taken. */
struct named {
	uint64_t *addresses;
	uint32_t count, room;
	uint64_t in_place[128];
	bool failed; /* no memory */
};

static void named_found(void *arg, uint64_t address)
{
	struct named *named = arg;

	if (named->count == named->room) {
		uint64_t *grown = malloc(2 * named->room * sizeof(*grown));

		if (!grown) {
			named->failed = true;
			return;
		}
		memcpy(grown, named->addresses, named->count * sizeof(*grown));
		if (named->addresses != named->in_place)
			free(named->addresses);
		named->addresses = grown;
		named->room *= 2;
	}
	named->addresses[named->count++] = address;
}

static void named_free(struct named *named)
{
	if (named->addresses != named->in_place)
		free(named->addresses);
}

/*
 * The objects that the addresses name; spans has room for all. Returns how many spans
 * there are. In the lock.
 */
static uint32_t find_objects(struct device *device, const uint64_t *addresses, uint32_t n,
			     struct span *spans)
{
	uint32_t count = 0;

	/* Twice: an address may be the start that ends the object of one before it. */
	for (int pass = 0; pass < 2; pass++) {
		count = 0;
		for (uint32_t i = 0; i < n; i++) {
			struct allocation *a = alloc_map_find(&device->map, addresses[i]);
			struct span *span = &spans[count];
			bool known;

			if (!a || !a->chunks || a->leaving)
				continue;
			*span = (struct span){ .allocation = a, .guest = true };
			alloc_object(a, addresses[i] - a->base, &span->begin, &span->end, &known);
			span->open = !known;
			span->named = addresses[i] - a->base;
			/* An allocator's segment is all of its memory: what the program has not
			 * named yet lies between as well. */
			if (span->open)
				span->least = alloc_probable_end(a, span->named);
			else
				span->least = a->sparse ? alloc_filled(a, span->named) : 0;
			count++;
		}
	}
	return count;
}

/* Each as short as it may be. */
static void shorten(struct span *spans, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (!spans[i].open && !spans[i].least)
			continue;
		spans[i].begin = spans[i].named;
		spans[i].end = spans[i].open ? spans[i].named + 1 : spans[i].least;
	}
}

/* Found again, as what was named may have gone with the launch that is refused. */
static void say_too_large(struct device *device, const uint64_t *addresses, uint32_t n,
			  struct span *spans)
{
	uint64_t chunks;
	uint32_t count;

	pthread_mutex_lock(&device->lock);
	count = find_objects(device, addresses, n, spans);
	shorten(spans, count);
	chunks = residency_chunks(device, spans, count);
	pthread_mutex_unlock(&device->lock);
	log_warn("a launch needs at least %llu MiB at once, and %llu MiB of chunks fit VRAM; RAM "
		 "has no room for the rest; give it more of either or, if there is, a smaller "
		 "chunk",
		 (unsigned long long)(chunks * device->chunk >> 20),
		 (unsigned long long)((uint64_t)residency_capacity(device) * device->chunk >> 20));
}

/* Those of the ranges that are the device's, each within one allocation. In the lock. */
static uint32_t find_ranges(const struct device *device, const struct extent *ranges, uint32_t n,
			    struct span *spans)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t bytes = ranges[i].end - ranges[i].begin;
		struct allocation *a = alloc_map_find(&device->map, ranges[i].begin);
		uint64_t offset = a ? ranges[i].begin - a->base : 0;

		if (!a || !a->chunks || a->leaving || !bytes || !alloc_holds(a, offset, bytes))
			continue;
		spans[count++] = (struct span){ .allocation = a,
						.begin = offset,
						.end = offset + bytes,
						.named = offset,
						.guest = true };
	}
	return count;
}

/* In the lock. */
static void invite(struct span *spans, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		spans[i].allocation->guests++;
}

static CUresult begin_invited(struct launch *launch, struct device *device, struct span *spans,
			      uint32_t count, CUstream stream, unsigned int variant)
{
	if (count)
		device_count(device, COUNTER_LAUNCHES_PAGED, 1);
	return launch_begin(launch, device, spans, count, stream, variant);
}

static struct span *begin_spans(struct launch *launch, uint32_t count, struct span few[128])
{
	launch_none(launch);
	return count > 128 ? malloc(count * sizeof(*few)) : few;
}

CUresult launch_begin_named(struct launch *launch, struct device *device, const uint64_t *addresses,
			    uint32_t n, CUstream stream, unsigned int variant)
{
	struct span few[128], *spans = begin_spans(launch, n, few);
	uint32_t count = 0;
	CUresult result;

	if (!spans)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (n) {
		pthread_mutex_lock(&device->lock);
		count = find_objects(device, addresses, n, spans);
		invite(spans, count);
		pthread_mutex_unlock(&device->lock);
	}
	result = begin_invited(launch, device, spans, count, stream, variant);
	if (count && result == CUDA_ERROR_OUT_OF_MEMORY)
		say_too_large(device, addresses, n, spans);
	if (spans != few)
		free(spans);
	return result;
}

CUresult launch_begin_whole(struct launch *launch, struct device *device, const struct parts *parts,
			    CUstream stream, unsigned int variant)
{
	struct span few[128],
		*spans = begin_spans(launch, parts->address_count + parts->range_count, few);
	CUresult result = CUDA_SUCCESS;
	uint32_t count;

	if (!spans)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_lock(&device->lock);
	count = find_objects(device, parts->addresses, parts->address_count, spans);
	for (uint32_t i = 0; i < count; i++) {
		spans[i].open = false;
		spans[i].least = 0;
	}
	count += find_ranges(device, parts->ranges, parts->range_count, spans + count);
	if (residency_fits(device, spans, count, 0))
		invite(spans, count);
	else
		result = CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_unlock(&device->lock);
	if (!result)
		result = begin_invited(launch, device, spans, count, stream, variant);
	if (spans != few)
		free(spans);
	return result;
}

bool launch_can_fit(struct device *device, const uint64_t *addresses, uint32_t n)
{
	struct span few[128], *spans = n > 128 ? malloc(n * sizeof(*spans)) : few;
	uint32_t count;
	bool fits;

	if (!spans)
		return false;
	pthread_mutex_lock(&device->lock);
	count = find_objects(device, addresses, n, spans);
	shorten(spans, count);
	fits = residency_fits(device, spans, count, residency_in_place_most(device));
	pthread_mutex_unlock(&device->lock);
	if (spans != few)
		free(spans);
	return fits;
}

/* Find what the parameters name and hold it for the stream. */
static CUresult begin_kernel(struct launch *launch, CUfunction f, uint64_t threads, void **params,
			     void **extra, CUstream stream, unsigned int variant)
{
	struct device *device = device_paging();
	struct named named = { .addresses = named.in_place, .room = 128 };
	CUresult result;

	launch_none(launch);
	if (!device)
		return CUDA_SUCCESS;
	launch->what = (struct launched){ .function = f, .few = threads <= GRACE_THREADS };
	functions_note(f, stream);
	device_count(device, COUNTER_LAUNCHES, 1);
	params_scan(f, params, extra, __atomic_load_n(&device->map.low, __ATOMIC_RELAXED),
		    __atomic_load_n(&device->map.high, __ATOMIC_RELAXED), named_found, &named);
	launch->captured = (named.count || atomic_load(&record_on) || atomic_load(&trace_on)) &&
			   launch_captured(stream, variant);
	/* It does not run now; graph_exec.c sees to what it names when its graph is launched. */
	if (launch->captured)
		named.count = 0;
	result = named.failed ? CUDA_ERROR_OUT_OF_MEMORY
			      : launch_begin_named(launch, device, named.addresses, named.count,
						   stream, variant);
	named_free(&named);
	return result;
}

/* Those of a launch that the driver refuses may be any number. */
static uint64_t threads(unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
			unsigned int by, unsigned int bz)
{
	return (uint64_t)gx * gy * gz * bx * by * bz;
}

CUresult hook_cuLaunchKernel(unsigned int variant, CUfunction f, unsigned int gx, unsigned int gy,
			     unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
			     unsigned int shared, CUstream stream, void **params, void **extra)
{
	struct launch launch;
	CUresult result;

	if (gate_enter()) {
		result = driver.cuLaunchKernel[variant](f, gx, gy, gz, bx, by, bz, shared, stream,
							params, extra);
		gate_leave();
		return result;
	}
	result = begin_kernel(&launch, f, threads(gx, gy, gz, bx, by, bz), params, extra, stream,
			      variant);
	if (result)
		return result;
	result = driver.cuLaunchKernel[variant](f, gx, gy, gz, bx, by, bz, shared, stream, params,
						extra);
	launch_end(&launch);
	return fault_check(result);
}

CUresult hook_cuLaunchCooperativeKernel(unsigned int variant, CUfunction f, unsigned int gx,
					unsigned int gy, unsigned int gz, unsigned int bx,
					unsigned int by, unsigned int bz, unsigned int shared,
					CUstream stream, void **params)
{
	struct launch launch;
	CUresult result;

	if (gate_enter()) {
		result = driver.cuLaunchCooperativeKernel[variant](f, gx, gy, gz, bx, by, bz,
								   shared, stream, params);
		gate_leave();
		return result;
	}
	result = begin_kernel(&launch, f, threads(gx, gy, gz, bx, by, bz), params, NULL, stream,
			      variant);
	if (result)
		return result;
	result = driver.cuLaunchCooperativeKernel[variant](f, gx, gy, gz, bx, by, bz, shared,
							   stream, params);
	launch_end(&launch);
	return fault_check(result);
}

CUresult hook_cuLaunchKernelEx(unsigned int variant, const CUlaunchConfig *config, CUfunction f,
			       void **params, void **extra)
{
	struct launch launch;
	CUresult result;

	if (gate_enter()) {
		result = driver.cuLaunchKernelEx[variant](config, f, params, extra);
		gate_leave();
		return result;
	}
	if (!config) /* the driver says so */
		return driver.cuLaunchKernelEx[variant](config, f, params, extra);
	result = begin_kernel(&launch, f,
			      threads(config->gridDimX, config->gridDimY, config->gridDimZ,
				      config->blockDimX, config->blockDimY, config->blockDimZ),
			      params, extra, config->hStream, variant);
	if (result)
		return result;
	result = driver.cuLaunchKernelEx[variant](config, f, params, extra);
	launch_end(&launch);
	return fault_check(result);
}

/* ---- captures ---- */

/* What was launched before anybody looked can be waited for now, and not during a capture. */
static void capture_begins(void)
{
	struct device *device = device_paging();
	CUcontext current;

	if (device && atomic_load(&device->paging) && !driver.cuCtxGetCurrent(&current) &&
	    current == device->context)
		residency_wait_for_the_unseen(device);
	gate_capture_begins();
}

CUresult hook_cuStreamBeginCapture(unsigned int variant, CUstream stream)
{
	CUresult result;

	capture_begins();
	result = driver.cuStreamBeginCapture[variant](stream);
	if (result)
		gate_capture_ends();
	return result;
}

CUresult hook_cuStreamBeginCapture_v2(unsigned int variant, CUstream stream, int mode)
{
	CUresult result;

	capture_begins();
	result = driver.cuStreamBeginCapture_v2[variant](stream, mode);
	if (result)
		gate_capture_ends();
	return result;
}

CUresult hook_cuStreamBeginCaptureToGraph(unsigned int variant, CUstream stream, CUgraph graph,
					  const CUgraphNode *deps, const void *edges, size_t n,
					  int mode)
{
	CUresult result;

	capture_begins();
	result = driver.cuStreamBeginCaptureToGraph[variant](stream, graph, deps, edges, n, mode);
	if (result)
		gate_capture_ends();
	return result;
}

CUresult hook_cuStreamEndCapture(unsigned int variant, CUstream stream, CUgraph *graph)
{
	/* An attempt that ends no capture, by the wrong stream say, leaves it going. */
	int before = driver_capture_status(stream, variant);
	CUresult result = driver.cuStreamEndCapture[variant](stream, graph);
	int after = driver_capture_status(stream, variant);

	if (before != CU_STREAM_CAPTURE_STATUS_NONE && after == CU_STREAM_CAPTURE_STATUS_NONE)
		gate_capture_ends();
	return result;
}

/* ---- handles that may come to mean something else ---- */

CUresult hook_cuModuleUnload(unsigned int variant, CUmodule module)
{
	(void)variant;
	params_forget();
	return driver.cuModuleUnload(module);
}

CUresult hook_cuLibraryUnload(unsigned int variant, CUlibrary library)
{
	(void)variant;
	params_forget();
	return driver.cuLibraryUnload(library);
}

CUresult hook_cuStreamDestroy(unsigned int variant, CUstream stream)
{
	tickets_forget_stream(stream_key(stream, 0));
	return driver.cuStreamDestroy[variant](stream);
}
