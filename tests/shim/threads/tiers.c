// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Threads that allocate, launch and copy at once, over more memory than VRAM,
 * each checking what it reads. Exit status 0, or 1 after a line about what went
 * wrong; on the software device a kernel that touches an absent chunk kills it.
 *
 *     threads SECONDS MODE
 *
 * alloc: some launch while others allocate and free
 * stream: all launch into one stream, and read chunks that all share
 * room: one needs all of VRAM while another copies
 * names: parameters hold, by accident, the address of what another frees
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_abi.h"

CUresult cuInit(unsigned int flags);
CUresult cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice device);
CUresult cuCtxSetCurrent(CUcontext ctx);
CUresult cuCtxSynchronize(void);
CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytes);
CUresult cuMemFree_v2(CUdeviceptr dptr);
CUresult cuStreamCreate(CUstream *stream, unsigned int flags);
CUresult cuStreamSynchronize(CUstream stream);
CUresult cuMemcpyDtoH_v2(void *dst, CUdeviceptr src, size_t bytes);
CUresult cuMemsetD32Async(CUdeviceptr dst, unsigned int value, size_t n, CUstream stream);
CUresult cuModuleLoadData(CUmodule *module, const void *image);
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
CUresult cuLaunchKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz,
			unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
			CUstream stream, void **params, void **extra);

#define MIB ((size_t)1 << 20)
#define CHECK(call)                                                                   \
	do {                                                                          \
		CUresult check_ = (call);                                             \
		if (check_) {                                                         \
			printf("%s:%d: %s: %d\n", __FILE__, __LINE__, #call, check_); \
			exit(1);                                                      \
		}                                                                     \
	} while (0)

static CUcontext context;
static CUfunction fill_u32, add_u32;
static CUstream common; /* NULL: each has its own */
static CUdeviceptr shared[8];
static atomic_bool over;
static _Atomic CUdeviceptr latest; /* of what comes and goes */

static CUdeviceptr allocate(size_t bytes)
{
	CUdeviceptr at;

	CHECK(cuMemAlloc_v2(&at, bytes));
	return at;
}

static void fill(CUdeviceptr dst, uint64_t n, uint32_t value, CUstream on)
{
	void *params[] = { &dst, &n, &value };

	CHECK(cuLaunchKernel(fill_u32, 1, 1, 1, 1, 1, 1, 0, on, params, NULL));
}

static void add(CUdeviceptr dst, CUdeviceptr a, CUdeviceptr b, uint64_t n, CUstream on)
{
	void *params[] = { &dst, &a, &b, &n };

	CHECK(cuLaunchKernel(add_u32, 1, 1, 1, 1, 1, 1, 0, on, params, NULL));
}

static void expect(CUdeviceptr at, uint32_t value)
{
	uint32_t got[256];

	CHECK(cuMemcpyDtoH_v2(got, at, sizeof(got)));
	for (size_t i = 0; i < 256; i++)
		if (got[i] != value) {
			printf("%#x is where %#x should be\n", got[i], value);
			exit(1);
		}
}

static void *allocates(void *arg)
{
	(void)arg;
	CHECK(cuCtxSetCurrent(context));
	while (!over) {
		CUdeviceptr at = allocate(2 * MIB);

		fill(at, 256, 77, NULL);
		expect(at, 77);
		CHECK(cuMemFree_v2(at));
	}
	return NULL;
}

static void *launches(void *arg)
{
	uint32_t value = (uint32_t)(uintptr_t)arg << 24;
	CUstream stream = common;
	CUdeviceptr own;

	CHECK(cuCtxSetCurrent(context));
	own = allocate(16 * MIB);
	if (!stream)
		CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	while (!over) {
		value++;
		for (size_t at = 0; at < 16 * MIB; at += 2 * MIB) {
			fill(own + at, 256, value, stream);
			add(own + at, own + at, shared[at / (2 * MIB)], 256, stream);
		}
		CHECK(cuStreamSynchronize(stream));
		for (size_t at = 0; at < 16 * MIB; at += 2 * MIB)
			expect(own + at, value + 1 + (uint32_t)(at / (2 * MIB)));
	}
	return NULL;
}

static void *copies(void *arg)
{
	char *host = malloc(4 * MIB);

	(void)arg;
	CHECK(cuCtxSetCurrent(context));
	while (!over)
		CHECK(cuMemcpyDtoH_v2(host, shared[0], 2 * MIB));
	free(host);
	return NULL;
}

static void *comes_and_goes(void *arg)
{
	(void)arg;
	CHECK(cuCtxSetCurrent(context));
	while (!over) {
		latest = allocate(2 * MIB);
		nanosleep(&(struct timespec){ .tv_nsec = 300000 }, NULL); /* to be named */
		CHECK(cuMemFree_v2(latest));
	}
	return NULL;
}

static void *names(void *arg)
{
	CUdeviceptr own[8];

	(void)arg;
	CHECK(cuCtxSetCurrent(context));
	for (int i = 0; i < 8; i++)
		own[i] = allocate(8 * MIB);
	for (uint32_t i = 0; !over; i++) {
		uint64_t packed[] = { own[i % 8], 256, i, latest }; /* it takes the first three */
		size_t bytes = sizeof(packed);
		void *extra[] = { CU_LAUNCH_PARAM_BUFFER_POINTER, packed,
				  CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes, CU_LAUNCH_PARAM_END };

		CHECK(cuLaunchKernel(fill_u32, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, extra));
	}
	return NULL;
}

static void *needs_all(void *arg)
{
	CUdeviceptr a[6];

	(void)arg;
	CHECK(cuCtxSetCurrent(context));
	for (int i = 0; i < 6; i++)
		a[i] = allocate((i % 3 ? 14 : 12) * MIB);
	while (!over)
		for (int i = 0; i < 6; i += 3)
			add(a[i], a[i + 1], a[i + 2], 256, NULL);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[8];
	CUmodule module;
	int n = 0;

	if (argc != 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	CHECK(cuInit(0));
	CHECK(cuDevicePrimaryCtxRetain(&context, 0));
	CHECK(cuCtxSetCurrent(context));
	CHECK(cuModuleLoadData(&module, "softcuda"));
	CHECK(cuModuleGetFunction(&fill_u32, module, "fill_u32"));
	CHECK(cuModuleGetFunction(&add_u32, module, "add_u32"));
	for (int i = 0; i < 8; i++) {
		shared[i] = allocate(2 * MIB);
		fill(shared[i], 256, (uint32_t)i + 1, NULL);
	}
	CHECK(cuCtxSynchronize());
	/* Tables of many allocations take longer to look through. */
	for (int i = 0; i < 1000; i++)
		allocate(4096);
	if (!strcmp(argv[2], "alloc")) {
		pthread_create(&threads[n++], NULL, allocates, NULL);
		pthread_create(&threads[n++], NULL, launches, (void *)1);
		pthread_create(&threads[n++], NULL, launches, (void *)2);
	} else if (!strcmp(argv[2], "stream")) {
		CHECK(cuStreamCreate(&common, CU_STREAM_NON_BLOCKING));
		pthread_create(&threads[n++], NULL, allocates, NULL);
		pthread_create(&threads[n++], NULL, launches, (void *)1);
		pthread_create(&threads[n++], NULL, launches, (void *)2);
	} else if (!strcmp(argv[2], "names")) {
		pthread_create(&threads[n++], NULL, comes_and_goes, NULL);
		pthread_create(&threads[n++], NULL, names, NULL);
	} else {
		pthread_create(&threads[n++], NULL, copies, NULL);
		pthread_create(&threads[n++], NULL, needs_all, NULL);
	}
	nanosleep(&(struct timespec){ .tv_sec = atoi(argv[1]) }, NULL);
	over = true;
	while (n)
		pthread_join(threads[--n], NULL);
	CHECK(cuCtxSynchronize());
	puts("right");
	fflush(stdout);
	return 0;
}
