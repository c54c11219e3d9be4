// SPDX-License-Identifier: GPL-2.0-or-later
/* cuMemcpy*: which copies wait for what, and for whom the host waits. */
#include "api.gen.h"
#include "copy.h"
#include "stream.h"

enum waiting { ASYNC, SYNC, READ_NOW };

/* Whose contexts name the ends; NULL: the stream's names both. */
struct peers {
	CUcontext dst, src;
};

static CUresult submit(CUstream stream, const struct box *box, enum waiting waiting,
		       const struct peers *peers)
{
	CUdevice here = stream->context->device;
	bool device_only = box->src.kind == RANGE_DEVICE && box->dst.kind == RANGE_DEVICE;
	bool pageable_dst = box->dst.kind == RANGE_PAGEABLE;
	bool pageable_src = box->src.kind == RANGE_PAGEABLE;

	if (!box->width || !box->height || !box->depth)
		return CUDA_SUCCESS;
	if (!box_granted(box, peers ? peers->dst->device : here, peers ? peers->src->device : here))
		return CUDA_ERROR_INVALID_VALUE;
	/* Between devices the host is not waited for, whatever the call is named. */
	if (waiting == SYNC && device_only)
		return stream_submit(stream, copy_work(box, false));
	if (waiting == SYNC)
		return stream_submit_and_wait(stream, copy_work(box, false));
	/* A graph reads and writes what is there when it runs. */
	if (stream->capture)
		return stream_submit(stream, copy_work(box, false));
	/* The driver cannot reach pageable memory later, so it does before it returns. */
	if (pageable_dst)
		return stream_submit_and_wait(stream, copy_work(box, false));
	return stream_submit(stream,
			     copy_work(box, pageable_src || (waiting == READ_NOW &&
							     box->src.kind != RANGE_DEVICE)));
}

/* A row of bytes; which ends a device must be able to reach is the caller's word. */
static CUresult copy_between(CUstream stream, uintptr_t dst, bool dst_device, uintptr_t src,
			     bool src_device, size_t bytes, enum waiting waiting,
			     const struct peers *peers)
{
	struct box box = {
		.dst.start = dst,
		.src.start = src,
		.width = bytes,
		.height = 1,
		.depth = 1,
	};
	CUresult error;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	error = end_check(&box, &box.dst, dst_device);
	if (!error)
		error = end_check(&box, &box.src, src_device);
	return error ? error : submit(stream, &box, waiting, peers);
}

static CUresult copy_row(CUstream stream, uintptr_t dst, bool dst_device, uintptr_t src,
			 bool src_device, size_t bytes, enum waiting waiting)
{
	return copy_between(stream, dst, dst_device, src, src_device, bytes, waiting, NULL);
}

CUresult do_cuMemcpy(bool per_thread, CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
	return copy_row(stream_resolve(NULL, per_thread), dst, false, src, false, bytes, SYNC);
}

CUresult do_cuMemcpyAsync(bool per_thread, CUdeviceptr dst, CUdeviceptr src, size_t bytes,
			  CUstream stream)
{
	return copy_row(stream_resolve(stream, per_thread), dst, false, src, false, bytes, ASYNC);
}

CUresult do_cuMemcpyHtoD_v2(bool per_thread, CUdeviceptr dst, const void *src, size_t bytes)
{
	return copy_row(stream_resolve(NULL, per_thread), dst, true, (uintptr_t)src, false, bytes,
			SYNC);
}

CUresult do_cuMemcpyHtoDAsync_v2(bool per_thread, CUdeviceptr dst, const void *src, size_t bytes,
				 CUstream stream)
{
	return copy_row(stream_resolve(stream, per_thread), dst, true, (uintptr_t)src, false, bytes,
			ASYNC);
}

CUresult do_cuMemcpyDtoH_v2(bool per_thread, void *dst, CUdeviceptr src, size_t bytes)
{
	return copy_row(stream_resolve(NULL, per_thread), (uintptr_t)dst, false, src, true, bytes,
			SYNC);
}

CUresult do_cuMemcpyDtoHAsync_v2(bool per_thread, void *dst, CUdeviceptr src, size_t bytes,
				 CUstream stream)
{
	return copy_row(stream_resolve(stream, per_thread), (uintptr_t)dst, false, src, true, bytes,
			ASYNC);
}

CUresult do_cuMemcpyDtoD_v2(bool per_thread, CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
	return copy_row(stream_resolve(NULL, per_thread), dst, true, src, true, bytes, SYNC);
}

CUresult do_cuMemcpyDtoDAsync_v2(bool per_thread, CUdeviceptr dst, CUdeviceptr src, size_t bytes,
				 CUstream stream)
{
	return copy_row(stream_resolve(stream, per_thread), dst, true, src, true, bytes, ASYNC);
}

static CUresult copy_peer(CUstream stream, CUdeviceptr dst, CUcontext dst_ctx, CUdeviceptr src,
			  CUcontext src_ctx, size_t bytes, enum waiting waiting)
{
	const struct peers peers = { .dst = dst_ctx, .src = src_ctx };
	CUresult error = context_check(dst_ctx);

	if (!error)
		error = context_check(src_ctx);
	return error ? error : copy_between(stream, dst, true, src, true, bytes, waiting, &peers);
}

CUresult do_cuMemcpyPeer(bool per_thread, CUdeviceptr dst, CUcontext dst_ctx, CUdeviceptr src,
			 CUcontext src_ctx, size_t bytes)
{
	return copy_peer(stream_resolve(NULL, per_thread), dst, dst_ctx, src, src_ctx, bytes, SYNC);
}

CUresult do_cuMemcpyPeerAsync(bool per_thread, CUdeviceptr dst, CUcontext dst_ctx, CUdeviceptr src,
			      CUcontext src_ctx, size_t bytes, CUstream stream)
{
	return copy_peer(stream_resolve(stream, per_thread), dst, dst_ctx, src, src_ctx, bytes,
			 ASYNC);
}

/* Hints of places are not needed, nor permission to read a source early. */
CUresult do_cuMemcpyBatchAsync_v2(bool per_thread, CUdeviceptr *dsts, CUdeviceptr *srcs,
				  size_t *sizes, size_t count, void *attrs, size_t *attr_idxs,
				  size_t n_attrs, CUstream stream)
{
	const CUmemcpyAttributes *attribute = attrs;
	CUresult error = CUDA_SUCCESS;
	size_t of = 0;

	if (!dsts || !srcs || !sizes || !count || !attrs || !attr_idxs || !n_attrs ||
	    n_attrs > count)
		return CUDA_ERROR_INVALID_VALUE;
	/* The documentation excludes the default streams. */
	if (!stream || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count && !error; i++) {
		enum waiting waiting;

		while (of + 1 < n_attrs && attr_idxs[of + 1] <= i)
			of++;
		waiting = attribute[of].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL
				  ? READ_NOW
				  : ASYNC;
		error = copy_row(stream_resolve(stream, per_thread), dsts[i], false, srcs[i], false,
				 sizes[i], waiting);
	}
	return error;
}

CUresult do_cuMemcpyBatchAsync(bool per_thread, CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes,
			       size_t count, void *attrs, size_t *attr_idxs, size_t n_attrs,
			       size_t *fail_idx, CUstream stream)
{
	if (fail_idx)
		*fail_idx = SIZE_MAX; /* which one failed is not told */
	return do_cuMemcpyBatchAsync_v2(per_thread, dsts, srcs, sizes, count, attrs, attr_idxs,
					n_attrs, stream);
}

CUresult do_cuMemcpyWithAttributesAsync(bool per_thread, CUdeviceptr dst, CUdeviceptr src,
					size_t bytes, CUmemcpyAttributes *attributes,
					CUstream stream)
{
	size_t first = 0;

	return do_cuMemcpyBatchAsync_v2(per_thread, &dst, &src, &bytes, 1, attributes, &first, 1,
					stream);
}

static CUresult copy_2d(CUstream stream, const CUDA_MEMCPY2D *copy, enum waiting waiting)
{
	struct box box;
	CUresult error;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!copy)
		return CUDA_ERROR_INVALID_VALUE;
	error = box_of_2d(copy, &box);
	return error ? error : submit(stream, &box, waiting, NULL);
}

CUresult do_cuMemcpy2D_v2(bool per_thread, const CUDA_MEMCPY2D *copy)
{
	return copy_2d(stream_resolve(NULL, per_thread), copy, SYNC);
}

CUresult do_cuMemcpy2DUnaligned_v2(bool per_thread, const CUDA_MEMCPY2D *copy)
{
	return copy_2d(stream_resolve(NULL, per_thread), copy, SYNC);
}

CUresult do_cuMemcpy2DAsync_v2(bool per_thread, const CUDA_MEMCPY2D *copy, CUstream stream)
{
	return copy_2d(stream_resolve(stream, per_thread), copy, ASYNC);
}

static CUresult copy_3d(CUstream stream, const CUDA_MEMCPY3D *copy, enum waiting waiting, bool peer)
{
	struct peers peers;
	CUresult error;
	struct box box;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!copy)
		return CUDA_ERROR_INVALID_VALUE;
	/* The descriptor of a peer copy has contexts where the other one's reserved fields are. */
	peers = (struct peers){ .dst = copy->reserved1, .src = copy->reserved0 };
	error = peer ? context_check(peers.dst) : CUDA_SUCCESS;
	if (!error && peer)
		error = context_check(peers.src);
	if (!error)
		error = box_of_3d(copy, &box);
	return error ? error : submit(stream, &box, waiting, peer ? &peers : NULL);
}

CUresult do_cuMemcpy3D_v2(bool per_thread, const CUDA_MEMCPY3D *copy)
{
	return copy_3d(stream_resolve(NULL, per_thread), copy, SYNC, false);
}

CUresult do_cuMemcpy3DAsync_v2(bool per_thread, const CUDA_MEMCPY3D *copy, CUstream stream)
{
	return copy_3d(stream_resolve(stream, per_thread), copy, ASYNC, false);
}

CUresult do_cuMemcpy3DPeer(bool per_thread, const CUDA_MEMCPY3D *copy)
{
	return copy_3d(stream_resolve(NULL, per_thread), copy, SYNC, true);
}

CUresult do_cuMemcpy3DPeerAsync(bool per_thread, const CUDA_MEMCPY3D *copy, CUstream stream)
{
	return copy_3d(stream_resolve(stream, per_thread), copy, ASYNC, true);
}
