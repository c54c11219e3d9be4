// SPDX-License-Identifier: GPL-2.0-or-later
#include "memory.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "api.gen.h"
#include "space.h"
#include "vram.h"

/* Small allocations share units of VRAM, carved in pieces. */
#define PIECE ((size_t)512)
#define PIECES (VRAM_UNIT / PIECE)
#define LARGEST_SMALL (VRAM_UNIT / 2)
#define PITCH ((size_t)512)

/* One unit of VRAM that small allocations are carved from. */
struct small_block {
	struct small_block *next;
	CUcontext context;
	struct reservation *place;
	struct vram_block *block;
	size_t used;
	bool taken[PIECES];
};

static struct small_block *small_blocks; /* the space's lock */
static atomic_size_t frees_to_come;

static size_t round_up(size_t bytes, size_t unit)
{
	return (bytes + unit - 1) / unit * unit;
}

/* Memory at an address; the space is locked for writing. NULL: out of addresses or mappings. */
static struct reservation *place_block(struct vram_block *block, size_t alignment)
{
	size_t bytes = vram_block_bytes(block);
	struct reservation *place = space_reserve(bytes, alignment, 0);

	if (place && !vram_map(block, place->at.start, bytes, PROT_READ | PROT_WRITE)) {
		space_close(place->at.start, place->at.end);
		space_release(place);
		return NULL;
	}
	return place;
}

static void unplace_block(struct reservation *place, struct vram_block *block)
{
	space_close(place->at.start, place->at.end);
	space_release(place);
	vram_put(block);
}

static struct span *alloc_large(CUcontext context, size_t bytes)
{
	size_t alignment = bytes < VRAM_CREATE_UNIT ? VRAM_UNIT : VRAM_CREATE_UNIT;
	struct reservation *place;
	struct vram_block *block;
	struct span *span;

	if (vram_alloc(context->device, round_up(bytes, VRAM_UNIT), &block))
		return NULL;
	place = place_block(block, alignment);
	if (!place) {
		vram_put(block);
		return NULL;
	}
	span = span_new(SPAN_ALLOC, place->at.start, bytes);
	if (!span) {
		unplace_block(place, block);
		return NULL;
	}
	span->block = block;
	return span;
}

static struct small_block *small_block_create(CUcontext context)
{
	struct small_block *small = calloc(1, sizeof *small);

	if (!small)
		return NULL;
	if (vram_alloc(context->device, VRAM_UNIT, &small->block)) {
		free(small);
		return NULL;
	}
	small->place = place_block(small->block, VRAM_UNIT);
	if (!small->place) {
		vram_put(small->block);
		free(small);
		return NULL;
	}
	small->context = context;
	small->next = small_blocks;
	small_blocks = small;
	return small;
}

/* The first of so many free pieces in a row; PIECES when there are none. */
static size_t find_pieces(const struct small_block *small, size_t count)
{
	size_t run = 0;

	for (size_t i = 0; i < PIECES; i++) {
		run = small->taken[i] ? 0 : run + 1;
		if (run == count)
			return i + 1 - count;
	}
	return PIECES;
}

static void set_pieces(struct small_block *small, size_t first, size_t count, bool taken)
{
	for (size_t i = first; i < first + count; i++)
		small->taken[i] = taken;
	small->used += taken ? count : -count;
}

static void small_block_free_unused(struct small_block *small)
{
	struct small_block **link = &small_blocks;

	if (small->used)
		return;
	while (*link != small)
		link = &(*link)->next;
	*link = small->next;
	unplace_block(small->place, small->block);
	free(small);
}

static struct span *alloc_small(CUcontext context, size_t bytes)
{
	size_t count = round_up(bytes, PIECE) / PIECE, first = PIECES;
	struct small_block *small;
	struct span *span;

	for (small = small_blocks; small; small = small->next) {
		first = small->context == context ? find_pieces(small, count) : PIECES;
		if (first < PIECES)
			break;
	}
	if (!small) {
		small = small_block_create(context);
		first = 0;
	}
	if (!small)
		return NULL;
	span = span_new(SPAN_ALLOC, small->place->at.start + first * PIECE, bytes);
	if (!span) {
		small_block_free_unused(small);
		return NULL;
	}
	span->small = small;
	set_pieces(small, first, count, true);
	return span;
}

/* Takes an allocation's memory and addresses away; the span is in no map any more. */
static void release(struct span *span)
{
	struct small_block *small = span->small;

	if (small) {
		size_t first = (span->at.start - small->place->at.start) / PIECE;
		size_t bytes = span->at.end - span->at.start;

		set_pieces(small, first, round_up(bytes, PIECE) / PIECE, false);
		small_block_free_unused(small);
	} else {
		unplace_block(space_reservation(span->at.start, span->at.end), span->block);
	}
	free(span);
}

static CUresult try_alloc(CUcontext context, size_t bytes, CUdeviceptr *dptr)
{
	struct span *span;
	CUresult error = CUDA_ERROR_OUT_OF_MEMORY;

	space_write_lock();
	span = bytes <= LARGEST_SMALL ? alloc_small(context, bytes) : alloc_large(context, bytes);
	if (span) {
		span->context = context;
		span->device = context->device;
		if (space_insert(span)) {
			*dptr = span->at.start;
			error = CUDA_SUCCESS;
		} else {
			release(span);
		}
	}
	space_unlock();
	return error;
}

CUresult memory_alloc(CUcontext context, size_t bytes, CUdeviceptr *dptr)
{
	size_t free, total;
	CUresult error;

	vram_totals(context->device, &free, &total);
	if (bytes > total)
		return CUDA_ERROR_OUT_OF_MEMORY;
	error = try_alloc(context, bytes, dptr);
	if (error && frees_to_come) {
		contexts_wait();
		error = try_alloc(context, bytes, dptr);
	}
	return error;
}

CUresult memory_alloc_managed(CUcontext context, size_t bytes, CUdeviceptr *dptr)
{
	CUresult error = memory_alloc(context, bytes, dptr);
	struct span *span;

	if (error)
		return error;
	space_write_lock();
	span = space_at(*dptr);
	if (span)
		span->managed = true;
	space_unlock();
	return error;
}

/* The allocation that starts at an address and is not being freed; the space is locked. */
static struct span *allocation_at(CUdeviceptr dptr)
{
	struct span *span = space_at(dptr);

	if (!span || span->kind != SPAN_ALLOC || span->at.start != dptr || span->freeing)
		return NULL;
	return span;
}

static CUresult mark_freeing(CUdeviceptr dptr, CUcontext *context)
{
	struct span *span;

	space_write_lock();
	span = allocation_at(dptr);
	if (span) {
		span->freeing = true;
		*context = span->context;
	}
	space_unlock();
	return span ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* NULL when its context was destroyed meanwhile, and all it had freed. The space is locked. */
static struct span *marked_at(CUdeviceptr dptr)
{
	struct span *span = space_at(dptr);

	return span && span->at.start == dptr && span->freeing ? span : NULL;
}

static void free_now(CUdeviceptr dptr)
{
	struct span *span;

	space_write_lock();
	span = marked_at(dptr);
	if (span) {
		space_remove(span);
		release(span);
	}
	space_unlock();
}

CUresult memory_mark_freeing(CUdeviceptr dptr)
{
	CUcontext context;
	CUresult error = mark_freeing(dptr, &context);

	if (!error)
		frees_to_come++;
	return error;
}

void memory_unmark_freeing(CUdeviceptr dptr)
{
	struct span *span;

	space_write_lock();
	span = marked_at(dptr);
	if (span)
		span->freeing = false;
	space_unlock();
	frees_to_come--;
}

void memory_free_marked(CUdeviceptr dptr)
{
	free_now(dptr);
	frees_to_come--;
}

void memory_free_all(CUcontext context)
{
	uintptr_t from = 0;
	struct span *span;

	space_write_lock();
	while ((span = space_next(from))) {
		from = span->at.end;
		if (span->context != context)
			continue;
		space_remove(span);
		if (span->kind == SPAN_ALLOC)
			release(span);
		else
			host_remove(span);
	}
	space_unlock();
}

CUresult do_cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytes)
{
	if (!dptr || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	return memory_alloc(context_current(), bytes, dptr);
}

CUresult do_cuMemAllocManaged(CUdeviceptr *dptr, size_t bytes, unsigned int flags)
{
	/* Attached to all streams, or to the host for the time being. */
	if (!dptr || !bytes || flags < 1 || flags > 2)
		return CUDA_ERROR_INVALID_VALUE;
	return memory_alloc_managed(context_current(), bytes, dptr);
}

CUresult do_cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pitch, size_t width, size_t height,
			       unsigned int element)
{
	size_t bytes;

	if (!dptr || !pitch || !width || !height || (element != 4 && element != 8 && element != 16))
		return CUDA_ERROR_INVALID_VALUE;
	if (width > SIZE_MAX - PITCH ||
	    __builtin_mul_overflow(round_up(width, PITCH), height, &bytes))
		return CUDA_ERROR_OUT_OF_MEMORY;
	*pitch = round_up(width, PITCH);
	return memory_alloc(context_current(), bytes, dptr);
}

CUresult do_cuMemFree_v2(CUdeviceptr dptr)
{
	CUcontext context;
	CUresult error;

	if (!dptr)
		return CUDA_SUCCESS;
	error = mark_freeing(dptr, &context);
	if (error)
		return error;
	/* As the driver does: whatever may still be using it is done first. */
	group_wait(&context->group);
	free_now(dptr);
	return CUDA_SUCCESS;
}

CUresult do_cuMemGetInfo_v2(size_t *free, size_t *total)
{
	if (!free || !total)
		return CUDA_ERROR_INVALID_VALUE;
	vram_totals(context_current()->device, free, total);
	return CUDA_SUCCESS;
}
