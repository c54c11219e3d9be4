// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Copies and memsets. They name their bytes exactly, so what they touch is held
 * a few chunks at a time, whatever their size; the driver's own call is made for
 * each piece. Pieces end at chunk borders.
 */
#define _GNU_SOURCE
#include <string.h>

#include "copy.h"
#include "device.h"
#include "far.h"
#include "fault.h"
#include "gate.h"
#include "launch.h"

/* A piece takes at most this share of VRAM, so that other work finds room. */
#define PIECE_SHARE 8
/* Host memory up to this size is searched for addresses: pointer arrays of batched kernels. */
#define POINTERS_MOST (64 << 10)

enum kind { ANY, BATCH, BATCH_V2, ATTRIBUTES, HTOD, DTOH, DTOD, PEER, SET8, SET16, SET32 };

/* One copy or memset of consecutive bytes. */
struct copy {
	enum kind kind;
	bool async;
	unsigned int variant;
	CUdeviceptr dst, src; /* src: 0 for a memset */
	uint64_t bytes;
	CUstream stream; /* of an asynchronous one */
	unsigned int value; /* of a memset */
	CUcontext dst_context, src_context; /* of a peer copy */
	CUmemcpyAttributes *attributes; /* of one of a batch: when the source may be read */
};

static CUresult issue_batch(const struct copy *c, CUdeviceptr dst, CUdeviceptr src, size_t n)
{
	size_t first = 0, failed, attributes = c->attributes ? 1 : 0;

	return c->kind == BATCH
		       ? driver.cuMemcpyBatchAsync[c->variant](&dst, &src, &n, 1, c->attributes,
							       &first, attributes, &failed,
							       c->stream)
		       : driver.cuMemcpyBatchAsync_v2[c->variant](&dst, &src, &n, 1, c->attributes,
								  &first, attributes, c->stream);
}

/* The driver's call for the bytes [at, at + n) of the copy. */
static CUresult issue(const struct copy *c, uint64_t at, uint64_t n)
{
	CUdeviceptr dst = c->dst + at, src = c->src + at;
	unsigned int v = c->variant;

	switch (c->kind) {
	case ANY:
		return c->async ? driver.cuMemcpyAsync[v](dst, src, n, c->stream)
				: driver.cuMemcpy[v](dst, src, n);
	case BATCH:
	case BATCH_V2:
		return issue_batch(c, dst, src, n);
	case ATTRIBUTES:
		return driver.cuMemcpyWithAttributesAsync[v](dst, src, n, c->attributes, c->stream);
	case HTOD:
		return c->async ? driver.cuMemcpyHtoDAsync_v2[v](dst, (const void *)src, n,
								 c->stream)
				: driver.cuMemcpyHtoD_v2[v](dst, (const void *)src, n);
	case DTOH:
		return c->async ? driver.cuMemcpyDtoHAsync_v2[v]((void *)dst, src, n, c->stream)
				: driver.cuMemcpyDtoH_v2[v]((void *)dst, src, n);
	case DTOD:
		return c->async ? driver.cuMemcpyDtoDAsync_v2[v](dst, src, n, c->stream)
				: driver.cuMemcpyDtoD_v2[v](dst, src, n);
	case PEER:
		return c->async ? driver.cuMemcpyPeerAsync[v](dst, c->dst_context, src,
							      c->src_context, n, c->stream)
				: driver.cuMemcpyPeer[v](dst, c->dst_context, src, c->src_context,
							 n);
	case SET8:
		return c->async ? driver.cuMemsetD8Async[v](dst, (unsigned char)c->value, n,
							    c->stream)
				: driver.cuMemsetD8_v2[v](dst, (unsigned char)c->value, n);
	case SET16:
		return c->async ? driver.cuMemsetD16Async[v](dst, (unsigned short)c->value, n / 2,
							     c->stream)
				: driver.cuMemsetD16_v2[v](dst, (unsigned short)c->value, n / 2);
	case SET32:
		return c->async ? driver.cuMemsetD32Async[v](dst, c->value, n / 4, c->stream)
				: driver.cuMemsetD32_v2[v](dst, c->value, n / 4);
	}
	return CUDA_ERROR_INVALID_VALUE;
}

/* One end of a copy in a paged allocation; device NULL: anything else, the driver's business. */
struct end {
	struct device *device;
	struct allocation *allocation;
	uint64_t offset; /* of the copy's first byte in the allocation */
};

/* Looks up [address, address + bytes). A range that runs out of its allocation is left to the
 * driver. */
static struct end find_end(CUdeviceptr address, uint64_t bytes)
{
	struct device *device = address ? device_of(address) : NULL;
	struct end end = { 0 };
	struct allocation *a;

	if (!device)
		return end;
	pthread_mutex_lock(&device->lock);
	a = alloc_map_find(&device->map, address);
	if (a && a->chunks && alloc_holds(a, address - a->base, bytes))
		end = (struct end){ device, a, address - a->base };
	pthread_mutex_unlock(&device->lock);
	return end;
}

/* How many bytes from `at` on may be one piece as far as this end goes. */
static uint64_t piece_end(const struct end *end, uint64_t at)
{
	uint64_t chunk, span;
	bool mapped;

	if (!end->device)
		return UINT64_MAX;
	chunk = end->device->chunk;
	/* VRAM and RAM side by side: no copy may run from one into the other, so what is in RAM
	 * would have to be brought to VRAM for a longer piece. */
	mapped = end->device->maps || __atomic_load_n(&end->device->mapped, __ATOMIC_RELAXED);
	span = mapped ? 0 : residency_capacity(end->device) / PIECE_SHARE * chunk;
	if (span < chunk)
		span = chunk;
	return span - (end->offset + at) % chunk;
}

static struct span piece_span(const struct end *end, uint64_t at, uint64_t bytes, bool overwritten)
{
	return (struct span){
		.allocation = end->allocation,
		.begin = end->offset + at,
		.named = end->offset + at,
		.end = end->offset + at + bytes,
		.overwritten = overwritten,
	};
}

/* Hold both ends for a piece. Ends on one device are held at once: two holds could wait for each
 * other. */
static CUresult begin_piece(struct launch held[2], const struct end ends[2], const bool written[2],
			    uint64_t at, uint64_t bytes, CUstream stream, unsigned int variant)
{
	struct span spans[2];
	bool overwritten[2];
	CUresult result;
	uint32_t n = 0;

	for (int e = 0; e < 2; e++) {
		launch_none(&held[e]);
		held[e].what = (struct launched){ 0 };
	}
	held[0].captured = held[1].captured = launch_captured(stream, variant);
	/* What a graph overwrites is there until it is launched. */
	for (int e = 0; e < 2; e++)
		overwritten[e] = written[e] && !held[e].captured;
	if (ends[0].device && ends[0].device == ends[1].device) {
		for (int e = 0; e < 2; e++)
			spans[n++] = piece_span(&ends[e], at, bytes, overwritten[e]);
		return launch_begin(&held[0], ends[0].device, spans, n, stream, variant);
	}
	/* In one order everywhere: who holds the first end waits for nobody who wants it. */
	for (int i = 0; i < 2; i++) {
		int e = ends[0].device < ends[1].device ? i : 1 - i;

		if (!ends[e].device)
			continue;
		spans[0] = piece_span(&ends[e], at, bytes, overwritten[e]);
		result = launch_begin(&held[e], ends[e].device, spans, 1, stream, variant);
		if (result) {
			launch_end(&held[1 - e]);
			return result;
		}
	}
	return CUDA_SUCCESS;
}

/* A copy within a chunk may read what it overwrites. */
static bool overlaps(const struct copy *c)
{
	return c->dst < c->src + c->bytes && c->src < c->dst + c->bytes;
}

static CUresult copy_in_pieces(const struct copy *c, const struct end ends[2])
{
	const bool written[2] = { c->kind != DTOH && !overlaps(c), false };
	CUstream stream = c->async ? c->stream : NULL;

	for (uint64_t at = 0; at < c->bytes;) {
		uint64_t n = c->bytes - at;
		struct launch held[2];
		CUresult result;

		for (int e = 0; e < 2; e++)
			if (piece_end(&ends[e], at) < n)
				n = piece_end(&ends[e], at);
		result = begin_piece(held, ends, written, at, n, stream, c->variant);
		if (result)
			return result;
		result = issue(c, at, n);
		launch_end(&held[0]);
		launch_end(&held[1]);
		if (result)
			return result;
		at += n;
	}
	return CUDA_SUCCESS;
}

void launch_keep_pointee(CUdeviceptr address)
{
	struct device *device = device_of(address);
	struct allocation *a;
	uint64_t begin, end;
	bool known;

	if (!device)
		return;
	pthread_mutex_lock(&device->lock);
	a = alloc_map_find(&device->map, address);
	if (a && a->chunks) {
		alloc_object(a, address - a->base, &begin, &end, &known);
		for (uint64_t c = begin / device->chunk; c <= (end - 1) / device->chunk; c++)
			device->chunks[a->first + c].sticky = true;
	}
	pthread_mutex_unlock(&device->lock);
}

static void keep_pointees(const void *host, uint64_t bytes)
{
	for (uint64_t at = 0; at + 8 <= bytes; at += 8) {
		uint64_t value;

		memcpy(&value, (const char *)host + at, 8);
		launch_keep_pointee(value);
	}
}

static CUresult perform(const struct copy *c, const struct end ends[2])
{
	CUresult result;

	/* What nobody looked at is waited for by its device's context when paging begins: this may
	 * run in another's. */
	if (!(c->kind == PEER && device_several()) && gate_enter()) {
		result = issue(c, 0, c->bytes);
		gate_leave();
		return result;
	}
	if (!c->bytes || (!ends[0].device && !ends[1].device))
		return issue(c, 0, c->bytes);
	return copy_in_pieces(c, ends);
}

/* Something else than what the program called, where that would not reach what is paged. */
static CUresult perform_anywhere(const struct copy *c, const struct end ends[2])
{
	CUstream stream = c->async ? c->stream : NULL;
	struct device *owner = ends[0].device ? ends[0].device : ends[1].device;
	struct copy other = *c;
	struct owner to, from;
	struct detour detour;
	CUdevice here;

	if (!owner || !c->bytes || !device_several())
		return perform(c, ends);
	here = far_device(stream);
	if (c->kind <= DTOD && c->kind != HTOD && c->kind != DTOH &&
	    far_apart(c->dst, c->src, here, &to, &from)) {
		other.kind = PEER;
		other.dst_context = to.context;
		other.src_context = from.context;
		return perform(&other, ends);
	}
	if (c->kind == PEER || here < 0 || here == owner->ordinal ||
	    launch_captured(stream, c->variant))
		return perform(c, ends);
	if (far_away(&detour, owner, stream, c->variant))
		return perform(c, ends);
	other.async = true;
	other.stream = detour.guest;
	other.variant = 0;
	return far_back(&detour, perform(&other, ends), !c->async && c->kind < SET8);
}

/* What every copy and memset goes through. */
static CUresult copy(const struct copy *c)
{
	const bool from_host = c->kind == HTOD, memset = c->kind >= SET8;
	struct end ends[2] = {
		c->kind == DTOH ? (struct end){ 0 } : find_end(c->dst, c->bytes),
		c->kind == HTOD ? (struct end){ 0 } : find_end(c->src, c->bytes),
	};

	if (c->bytes && ends[0].device &&
	    (memset || from_host || (c->kind <= ATTRIBUTES && !ends[1].device))) {
		pthread_mutex_lock(&ends[0].device->lock);
		alloc_note_write(ends[0].allocation, ends[0].offset, c->bytes);
		pthread_mutex_unlock(&ends[0].device->lock);
	}
	if (from_host && c->bytes <= POINTERS_MOST)
		keep_pointees((const void *)c->src, c->bytes);
	return fault_check(perform_anywhere(c, ends));
}

CUresult copy_bytes(CUdeviceptr dst, CUdeviceptr src, uint64_t bytes, bool async, CUstream stream,
		    unsigned int variant)
{
	return copy(&(struct copy){ .kind = DTOD,
				    .async = async,
				    .variant = variant,
				    .dst = dst,
				    .src = src,
				    .bytes = bytes,
				    .stream = stream });
}

CUresult hook_cuMemcpy(unsigned int variant, CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
	return copy(&(struct copy){
		.kind = ANY, .variant = variant, .dst = dst, .src = src, .bytes = bytes });
}

CUresult hook_cuMemcpyAsync(unsigned int variant, CUdeviceptr dst, CUdeviceptr src, size_t bytes,
			    CUstream stream)
{
	return copy(&(struct copy){ .kind = ANY,
				    .async = true,
				    .variant = variant,
				    .dst = dst,
				    .src = src,
				    .bytes = bytes,
				    .stream = stream });
}

CUresult hook_cuMemcpyHtoD_v2(unsigned int variant, CUdeviceptr dst, const void *src, size_t bytes)
{
	return copy(&(struct copy){ .kind = HTOD,
				    .variant = variant,
				    .dst = dst,
				    .src = (CUdeviceptr)src,
				    .bytes = bytes });
}

CUresult hook_cuMemcpyHtoDAsync_v2(unsigned int variant, CUdeviceptr dst, const void *src,
				   size_t bytes, CUstream stream)
{
	return copy(&(struct copy){ .kind = HTOD,
				    .async = true,
				    .variant = variant,
				    .dst = dst,
				    .src = (CUdeviceptr)src,
				    .bytes = bytes,
				    .stream = stream });
}

CUresult hook_cuMemcpyDtoH_v2(unsigned int variant, void *dst, CUdeviceptr src, size_t bytes)
{
	return copy(&(struct copy){ .kind = DTOH,
				    .variant = variant,
				    .dst = (CUdeviceptr)dst,
				    .src = src,
				    .bytes = bytes });
}

CUresult hook_cuMemcpyDtoHAsync_v2(unsigned int variant, void *dst, CUdeviceptr src, size_t bytes,
				   CUstream stream)
{
	return copy(&(struct copy){ .kind = DTOH,
				    .async = true,
				    .variant = variant,
				    .dst = (CUdeviceptr)dst,
				    .src = src,
				    .bytes = bytes,
				    .stream = stream });
}

CUresult hook_cuMemcpyDtoD_v2(unsigned int variant, CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
	return copy_bytes(dst, src, bytes, false, NULL, variant);
}

CUresult hook_cuMemcpyDtoDAsync_v2(unsigned int variant, CUdeviceptr dst, CUdeviceptr src,
				   size_t bytes, CUstream stream)
{
	return copy_bytes(dst, src, bytes, true, stream, variant);
}

CUresult hook_cuMemcpyPeer(unsigned int variant, CUdeviceptr dst, CUcontext dst_ctx,
			   CUdeviceptr src, CUcontext src_ctx, size_t bytes)
{
	return copy(&(struct copy){ .kind = PEER,
				    .variant = variant,
				    .dst = dst,
				    .src = src,
				    .bytes = bytes,
				    .dst_context = dst_ctx,
				    .src_context = src_ctx });
}

CUresult hook_cuMemcpyPeerAsync(unsigned int variant, CUdeviceptr dst, CUcontext dst_ctx,
				CUdeviceptr src, CUcontext src_ctx, size_t bytes, CUstream stream)
{
	return copy(&(struct copy){ .kind = PEER,
				    .async = true,
				    .variant = variant,
				    .dst = dst,
				    .src = src,
				    .bytes = bytes,
				    .stream = stream,
				    .dst_context = dst_ctx,
				    .src_context = src_ctx });
}

/* Is anything paged that the stream's device is not the one of? */
static bool batch_is_far(const CUdeviceptr *dsts, const CUdeviceptr *srcs, size_t count,
			 CUstream stream)
{
	CUdevice here;

	if (!device_several())
		return false;
	here = far_device(stream);
	for (size_t i = 0; i < count; i++) {
		const struct device *dst = device_of(dsts[i]), *src = device_of(srcs[i]);

		if ((dst && dst->ordinal != here) || (src && src->ordinal != here))
			return true;
	}
	return false;
}

/* A batch promises no order among its copies, so one after the other is right. */
static CUresult copy_each(enum kind kind, unsigned int variant, const CUdeviceptr *dsts,
			  const CUdeviceptr *srcs, const size_t *sizes, size_t count,
			  CUmemcpyAttributes *attributes, const size_t *firsts, size_t n,
			  size_t *failed, CUstream stream)
{
	size_t of = 0; /* attributes are for the copies from firsts on, up to the next one's */

	for (size_t i = 0; i < count; i++) {
		CUresult result;

		while (of + 1 < n && firsts[of + 1] <= i)
			of++;
		result = copy(&(struct copy){ .kind = kind,
					      .async = true,
					      .variant = variant,
					      .dst = dsts[i],
					      .src = srcs[i],
					      .bytes = sizes[i],
					      .stream = stream,
					      .attributes = &attributes[of] });
		if (result) {
			if (failed)
				*failed = i;
			return result;
		}
	}
	return CUDA_SUCCESS;
}

CUresult hook_cuMemcpyBatchAsync(unsigned int variant, CUdeviceptr *dsts, CUdeviceptr *srcs,
				 size_t *sizes, size_t count, void *attrs, size_t *attr_idxs,
				 size_t n_attrs, size_t *fail_idx, CUstream stream)
{
	/* What is wrong is the driver's to say. */
	bool whole = !dsts || !srcs || !sizes || !attrs || !attr_idxs || !n_attrs;
	bool entered = (whole || !batch_is_far(dsts, srcs, count, stream)) && gate_enter();
	CUresult result;

	if (!entered && !whole)
		return copy_each(BATCH, variant, dsts, srcs, sizes, count, attrs, attr_idxs,
				 n_attrs, fail_idx, stream);
	result = driver.cuMemcpyBatchAsync[variant](dsts, srcs, sizes, count, attrs, attr_idxs,
						    n_attrs, fail_idx, stream);
	if (entered)
		gate_leave();
	return result;
}

CUresult hook_cuMemcpyBatchAsync_v2(unsigned int variant, CUdeviceptr *dsts, CUdeviceptr *srcs,
				    size_t *sizes, size_t count, void *attrs, size_t *attr_idxs,
				    size_t n_attrs, CUstream stream)
{
	bool whole = !dsts || !srcs || !sizes || !attrs || !attr_idxs || !n_attrs;
	bool entered = (whole || !batch_is_far(dsts, srcs, count, stream)) && gate_enter();
	CUresult result;

	if (!entered && !whole)
		return copy_each(BATCH_V2, variant, dsts, srcs, sizes, count, attrs, attr_idxs,
				 n_attrs, NULL, stream);
	result = driver.cuMemcpyBatchAsync_v2[variant](dsts, srcs, sizes, count, attrs, attr_idxs,
						       n_attrs, stream);
	if (entered)
		gate_leave();
	return result;
}

CUresult hook_cuMemcpyWithAttributesAsync(unsigned int variant, CUdeviceptr dst, CUdeviceptr src,
					  size_t bytes, CUmemcpyAttributes *attributes,
					  CUstream stream)
{
	return copy(&(struct copy){ .kind = ATTRIBUTES,
				    .async = true,
				    .variant = variant,
				    .dst = dst,
				    .src = src,
				    .bytes = bytes,
				    .stream = stream,
				    .attributes = attributes });
}

CUresult hook_cuMemsetD8_v2(unsigned int variant, CUdeviceptr dst, unsigned char value, size_t n)
{
	return copy(&(struct copy){
		.kind = SET8, .variant = variant, .dst = dst, .bytes = n, .value = value });
}

CUresult hook_cuMemsetD16_v2(unsigned int variant, CUdeviceptr dst, unsigned short value, size_t n)
{
	return copy(&(struct copy){
		.kind = SET16, .variant = variant, .dst = dst, .bytes = 2 * n, .value = value });
}

CUresult hook_cuMemsetD32_v2(unsigned int variant, CUdeviceptr dst, unsigned int value, size_t n)
{
	return copy(&(struct copy){
		.kind = SET32, .variant = variant, .dst = dst, .bytes = 4 * n, .value = value });
}

CUresult hook_cuMemsetD8Async(unsigned int variant, CUdeviceptr dst, unsigned char value, size_t n,
			      CUstream stream)
{
	return copy(&(struct copy){ .kind = SET8,
				    .async = true,
				    .variant = variant,
				    .dst = dst,
				    .bytes = n,
				    .value = value,
				    .stream = stream });
}

CUresult hook_cuMemsetD16Async(unsigned int variant, CUdeviceptr dst, unsigned short value,
			       size_t n, CUstream stream)
{
	return copy(&(struct copy){ .kind = SET16,
				    .async = true,
				    .variant = variant,
				    .dst = dst,
				    .bytes = 2 * n,
				    .value = value,
				    .stream = stream });
}

CUresult hook_cuMemsetD32Async(unsigned int variant, CUdeviceptr dst, unsigned int value, size_t n,
			       CUstream stream)
{
	return copy(&(struct copy){ .kind = SET32,
				    .async = true,
				    .variant = variant,
				    .dst = dst,
				    .bytes = 4 * n,
				    .value = value,
				    .stream = stream });
}
