// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Everything the software device does with threads, from several of them at
 * once, for a run under a sanitizer: allocations, mappings, streams, events,
 * copies, host functions, graphs. Every result is checked. Exit status 0, or 1
 * after a line about what went wrong.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_abi.h"
#include "softcuda.h"

CUresult cuInit(unsigned int flags);
CUresult cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice device);
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device);
CUresult cuCtxSetCurrent(CUcontext ctx);
CUresult cuCtxSynchronize(void);
CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytes);
CUresult cuMemFree_v2(CUdeviceptr dptr);
CUresult cuMemAllocAsync(CUdeviceptr *dptr, size_t bytes, CUstream stream);
CUresult cuMemFreeAsync(CUdeviceptr dptr, CUstream stream);
CUresult cuMemGetInfo_v2(size_t *free, size_t *total);
CUresult cuMemHostAlloc(void **host, size_t bytes, unsigned int flags);
CUresult cuMemFreeHost(void *host);
CUresult cuMemHostRegister_v2(void *host, size_t bytes, unsigned int flags);
CUresult cuMemHostUnregister(void *host);
CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr hint,
			     unsigned long long flags);
CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size);
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
		     const CUmemAllocationProp *prop, unsigned long long flags);
CUresult cuMemRelease(CUmemGenericAllocationHandle handle);
CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
		  unsigned long long flags);
CUresult cuMemUnmap(CUdeviceptr ptr, size_t size);
CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count);
CUresult cuStreamCreate(CUstream *stream, unsigned int flags);
CUresult cuStreamDestroy_v2(CUstream stream);
CUresult cuStreamSynchronize(CUstream stream);
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags);
CUresult cuStreamBeginCapture_v2(CUstream stream, int mode);
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph);
CUresult cuThreadExchangeStreamCaptureMode(int *mode);
CUresult cuEventCreate(CUevent *event, unsigned int flags);
CUresult cuEventDestroy_v2(CUevent event);
CUresult cuEventRecord(CUevent event, CUstream stream);
CUresult cuEventSynchronize(CUevent event);
CUresult cuMemcpyHtoD_v2(CUdeviceptr dst, const void *src, size_t bytes);
CUresult cuMemcpyDtoH_v2(void *dst, CUdeviceptr src, size_t bytes);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream);
CUresult cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t bytes, CUstream stream);
CUresult cuMemsetD32Async(CUdeviceptr dst, unsigned int value, size_t n, CUstream stream);
CUresult cuModuleLoadData(CUmodule *module, const void *image);
CUresult cuModuleUnload(CUmodule module);
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
CUresult cuLaunchKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz,
			unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
			CUstream stream, void **params, void **extra);
CUresult cuLaunchKernel_ptsz(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz,
			     unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
			     CUstream stream, void **params, void **extra);
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *user_data);
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags);
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream);
CUresult cuGraphExecDestroy(CUgraphExec exec);
CUresult cuGraphDestroy(CUgraph graph);

#define THREADS 6
#define ROUNDS 30
#define WORDS 1024
#define BYTES (WORDS * sizeof(uint32_t))
#define UNIT ((size_t)2 << 20)

#define CHECK(call)                                     \
	do {                                            \
		int checked = (call);                   \
		if (checked)                            \
			fail(__LINE__, #call, checked); \
	} while (0)

static CUcontext context;
static CUmodule module;
static CUfunction fill, add;

static void fail(int line, const char *what, int result)
{
	fprintf(stderr, "stress.c:%d: %s: %d\n", line, what, result);
	exit(1);
}

static void launch_add(CUstream stream, CUdeviceptr dst, CUdeviceptr a, CUdeviceptr b)
{
	uint64_t n = WORDS;
	void *params[] = { &dst, &a, &b, &n };

	CHECK(cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
}

static void expect(const uint32_t *words, uint32_t value)
{
	for (size_t i = 0; i < WORDS; i++)
		if (words[i] != value)
			fail(__LINE__, "a result", (int)words[i]);
}

/* Two streams that wait for each other's events; allocations in the streams' order. */
static void streams_and_events(uint32_t seed)
{
	uint32_t out[WORDS];
	CUstream one, other;
	CUevent filled, added;
	CUdeviceptr a, b;

	CHECK(cuStreamCreate(&one, seed % 2));
	CHECK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
	CHECK(cuEventCreate(&filled, CU_EVENT_DEFAULT));
	CHECK(cuEventCreate(&added, CU_EVENT_DISABLE_TIMING));
	CHECK(cuMemAlloc_v2(&a, BYTES));
	CHECK(cuMemAllocAsync(&b, BYTES, one));
	CHECK(cuMemsetD32Async(a, seed, WORDS, one));
	CHECK(cuMemsetD32Async(b, 7, WORDS, one));
	CHECK(cuEventRecord(filled, one));
	CHECK(cuStreamWaitEvent(other, filled, 0));
	launch_add(other, a, a, b);
	CHECK(cuEventRecord(added, other));
	CHECK(cuStreamWaitEvent(one, added, 0));
	CHECK(cuMemFreeAsync(b, one));
	CHECK(cuEventSynchronize(added));
	CHECK(cuMemcpyDtoH_v2(out, a, BYTES));
	expect(out, seed + 7);
	CHECK(cuEventDestroy_v2(filled));
	CHECK(cuEventDestroy_v2(added));
	CHECK(cuStreamDestroy_v2(one));
	CHECK(cuStreamDestroy_v2(other));
	CHECK(cuMemFree_v2(a));
}

static void map(CUdeviceptr address, CUmemGenericAllocationHandle handle)
{
	const CUmemAccessDesc access = { { CU_MEM_LOCATION_TYPE_DEVICE, 0 },
					 CU_MEM_ACCESS_FLAGS_PROT_READWRITE };

	CHECK(cuMemMap(address, UNIT, 0, handle, 0));
	CHECK(cuMemSetAccess(address, UNIT, &access, 1));
}

/* Memory that is filled at one address and read at another. */
static void mappings(uint32_t seed)
{
	const CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED,
					   .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } };
	CUmemGenericAllocationHandle handle;
	CUdeviceptr range;
	uint32_t *host;

	CHECK(cuMemHostAlloc((void **)&host, BYTES, 0));
	CHECK(cuMemAddressReserve(&range, 2 * UNIT, 0, 0, 0));
	CHECK(cuMemCreate(&handle, UNIT, &prop, 0));
	map(range, handle);
	for (size_t i = 0; i < WORDS; i++)
		host[i] = seed;
	CHECK(cuMemcpyHtoDAsync_v2(range, host, BYTES, CU_STREAM_PER_THREAD));
	CHECK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
	map(range + UNIT, handle);
	CHECK(cuMemUnmap(range, UNIT));
	CHECK(cuMemRelease(handle));
	memset(host, 0, BYTES);
	CHECK(cuMemcpyDtoHAsync_v2(host, range + UNIT, BYTES, CU_STREAM_PER_THREAD));
	CHECK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
	expect(host, seed);
	CHECK(cuMemUnmap(range + UNIT, UNIT));
	CHECK(cuMemAddressFree(range, 2 * UNIT));
	CHECK(cuMemFreeHost(host));
}

static void count(void *counter)
{
	/* Plain: what a stream does is in order, and the host waits for it. */
	++*(unsigned int *)counter;
}

/* A captured graph, replayed; other threads' captures and calls go on meanwhile. */
static void graphs(uint32_t seed)
{
	int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
	unsigned int calls = 0;
	uint32_t *host;
	uint64_t n = WORDS;
	CUdeviceptr address;
	CUstream stream;
	CUgraph graph;
	CUgraphExec exec;
	void *params[] = { &address, &n, &seed };

	host = aligned_alloc(4096, BYTES);
	if (!host)
		fail(__LINE__, "aligned_alloc", 0);
	memset(host, 0, BYTES);
	CHECK(cuMemHostRegister_v2(host, BYTES, 0));
	address = (CUdeviceptr)(uintptr_t)host;
	CHECK(cuThreadExchangeStreamCaptureMode(&mode));
	CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	CHECK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	CHECK(cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
	launch_add(stream, address, address, address);
	CHECK(cuLaunchHostFunc(stream, count, &calls));
	CHECK(cuStreamEndCapture(stream, &graph));
	CHECK(cuGraphInstantiateWithFlags(&exec, graph, 0));
	CHECK(cuGraphDestroy(graph));
	for (int i = 0; i < 3; i++)
		CHECK(cuGraphLaunch(exec, stream));
	CHECK(cuGraphExecDestroy(exec));
	CHECK(cuStreamSynchronize(stream));
	if (calls != 3)
		fail(__LINE__, "calls", (int)calls);
	expect(host, 2 * seed);
	CHECK(cuStreamDestroy_v2(stream));
	CHECK(cuMemHostUnregister(host));
	CHECK(cuThreadExchangeStreamCaptureMode(&mode));
	free(host);
}

/* Default streams of both kinds, which order themselves with everybody's blocking streams. */
static void default_streams(uint32_t seed)
{
	uint32_t words[WORDS];
	uint64_t n = WORDS;
	CUdeviceptr address;
	void *params[] = { &address, &n, &seed };

	CHECK(cuMemAlloc_v2(&address, BYTES));
	CHECK(cuLaunchKernel_ptsz(fill, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
	launch_add(NULL, address, address, address);
	CHECK(cuMemcpyDtoH_v2(words, address, BYTES));
	expect(words, 2 * seed);
	CHECK(cuMemcpyHtoD_v2(address, words, BYTES));
	CHECK(cuMemFree_v2(address));
}

static void *work(void *argument)
{
	uint32_t seed = (uint32_t)(uintptr_t)argument;

	CHECK(cuCtxSetCurrent(context));
	for (uint32_t round = 0; round < ROUNDS; round++) {
		streams_and_events(seed + round);
		mappings(seed + round);
		graphs(seed + round);
		default_streams(seed + round);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	size_t free, total;

	CHECK(cuInit(0));
	CHECK(cuDevicePrimaryCtxRetain(&context, 0));
	CHECK(cuCtxSetCurrent(context));
	CHECK(cuModuleLoadData(&module, SOFTCUDA_IMAGE));
	CHECK(cuModuleGetFunction(&fill, module, "fill_u32"));
	CHECK(cuModuleGetFunction(&add, module, "add_u32"));
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, work, (void *)(100 * i)));
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL));
	CHECK(cuCtxSynchronize());
	CHECK(cuMemGetInfo_v2(&free, &total));
	CHECK(free != total);
	CHECK(cuModuleUnload(module));
	CHECK(cuDevicePrimaryCtxRelease_v2(0));
	return 0;
}
