// SPDX-License-Identifier: GPL-2.0-or-later
/* Host memory that devices can read and write: allocated as such, or registered. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "api.gen.h"
#include "memory.h"
#include "space.h"

#define ALLOC_FLAGS 7u /* portable, device map, write-combined */
#define REGISTER_FLAGS 11u /* portable, device map, read-only */

static size_t page_round(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (bytes + page - 1) & -page;
}

/* Whether every page of a range is mapped by the process. */
static bool mapped(uintptr_t start, size_t bytes)
{
	uintptr_t page = start & -(uintptr_t)sysconf(_SC_PAGESIZE);

	return !msync((void *)page, start + bytes - page, MS_ASYNC) || errno != ENOMEM;
}

/* Makes a range known as host memory of the current context; the space is locked. */
static CUresult insert(uintptr_t start, size_t bytes, unsigned int flags, bool allocated)
{
	struct span *span = span_new(SPAN_HOST, start, bytes);

	if (!span)
		return CUDA_ERROR_OUT_OF_MEMORY;
	span->context = context_current();
	span->device = span->context->device;
	span->host_flags = flags;
	span->host_allocated = allocated;
	if (space_insert(span))
		return CUDA_SUCCESS;
	free(span);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

void host_remove(struct span *span)
{
	if (span->host_allocated)
		munmap((void *)span->at.start, page_round(span->at.end - span->at.start));
	free(span);
}

CUresult do_cuMemHostAlloc(void **host, size_t bytes, unsigned int flags)
{
	CUresult error;
	void *memory;

	if (!host || !bytes || flags & ~ALLOC_FLAGS)
		return CUDA_ERROR_INVALID_VALUE;
	if (bytes > SIZE_MAX / 2)
		return CUDA_ERROR_OUT_OF_MEMORY;
	memory = mmap(NULL, page_round(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (memory == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	space_write_lock();
	error = insert((uintptr_t)memory, bytes, flags, true);
	space_unlock();
	if (error)
		munmap(memory, page_round(bytes));
	else
		*host = memory;
	return error;
}

CUresult do_cuMemAllocHost_v2(void **host, size_t bytes)
{
	return do_cuMemHostAlloc(host, bytes, 0);
}

/* Takes the span that starts at an address and is of the kind asked for out of the space. */
static CUresult take(uintptr_t start, bool allocated, CUresult otherwise)
{
	struct span *span;

	space_write_lock();
	span = space_at(start);
	if (span && (span->kind != SPAN_HOST || span->at.start != start ||
		     span->host_allocated != allocated))
		span = NULL;
	if (span) {
		space_remove(span);
		host_remove(span);
	}
	space_unlock();
	return span ? CUDA_SUCCESS : otherwise;
}

CUresult do_cuMemFreeHost(void *host)
{
	if (!host)
		return CUDA_SUCCESS;
	contexts_wait();
	return take((uintptr_t)host, true, CUDA_ERROR_INVALID_VALUE);
}

CUresult do_cuMemHostRegister_v2(void *host, size_t bytes, unsigned int flags)
{
	uintptr_t start = (uintptr_t)host;
	CUresult error;

	if (!host || !bytes || flags & ~REGISTER_FLAGS || start + bytes < start)
		return CUDA_ERROR_INVALID_VALUE;
	if (!mapped(start, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	space_write_lock();
	if (!space_overlaps(start, start + bytes)) {
		error = insert(start, bytes, flags, false);
	} else {
		struct span *span = space_next(start);

		error = span->kind == SPAN_HOST ? CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
						: CUDA_ERROR_INVALID_VALUE;
	}
	space_unlock();
	return error;
}

/* Unregistering waits for every kernel that runs, as measured on hardware. */
CUresult do_cuMemHostUnregister(void *host)
{
	if (!host)
		return CUDA_ERROR_INVALID_VALUE;
	contexts_wait();
	return take((uintptr_t)host, false, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

static CUresult find(const void *host, unsigned int *flags)
{
	struct span *span;

	space_read_lock();
	span = space_at((uintptr_t)host);
	if (span && span->kind == SPAN_HOST)
		*flags = span->host_flags;
	else
		span = NULL;
	space_unlock();
	return span ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemHostGetDevicePointer_v2(CUdeviceptr *dptr, void *host, unsigned int flags)
{
	unsigned int host_flags;
	CUresult error;

	if (!dptr || flags)
		return CUDA_ERROR_INVALID_VALUE;
	error = find(host, &host_flags);
	if (!error)
		*dptr = (uintptr_t)host;
	return error;
}

CUresult do_cuMemHostGetFlags(unsigned int *flags, void *host)
{
	return flags ? find(host, flags) : CUDA_ERROR_INVALID_VALUE;
}
