/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Allocations that are memory and addresses at once, as cuMemAlloc makes them. */
#ifndef SOFTCUDA_MEMORY_H
#define SOFTCUDA_MEMORY_H

#include "context.h"

/*
 * Allocates bytes on the context's device. Where memory is short, waits for the
 * frees that streams still have to do.
 */
CUresult memory_alloc(CUcontext context, size_t bytes, CUdeviceptr *dptr);

/* The same, of memory that counts as managed. */
CUresult memory_alloc_managed(CUcontext context, size_t bytes, CUdeviceptr *dptr);

/*
 * Says that a stream is going to free an allocation; nobody else may from then
 * on. CUDA_ERROR_INVALID_VALUE: it is no allocation's start, or said before.
 */
CUresult memory_mark_freeing(CUdeviceptr dptr);

/* Takes it back. */
void memory_unmark_freeing(CUdeviceptr dptr);

/* Frees such an allocation now. */
void memory_free_marked(CUdeviceptr dptr);

/* Frees what a context has allocated and unregisters what it has registered. */
void memory_free_all(CUcontext context);

/* host.c's part of it; called with the space locked for writing. */
struct span;
void host_remove(struct span *span);

#endif
