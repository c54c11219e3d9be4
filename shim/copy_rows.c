// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Copies of rows: 2D and 3D. All rows are held at once where they fit, else half of them at a
 * time.
 */
#define _GNU_SOURCE
#include "copy.h"
#include "device.h"
#include "far.h"
#include "gate.h"
#include "log.h"
#include "ranges.h"

static bool is_device(int type)
{
	return type == CU_MEMORYTYPE_DEVICE || type == CU_MEMORYTYPE_UNIFIED;
}

static void sides_3d(const CUDA_MEMCPY3D *c, struct extent sides[2])
{
	/* Height may be left out where there is one slice. */
	uint64_t src_slice = c->srcPitch * (c->srcHeight ? c->srcHeight : c->Height);
	uint64_t dst_slice = c->dstPitch * (c->dstHeight ? c->dstHeight : c->Height);
	uint64_t rows = c->Height - 1, slices = c->Depth - 1;

	sides[0] = sides[1] = (struct extent){ 0, 0 };
	if (is_device(c->srcMemoryType)) {
		sides[0].begin =
			c->srcDevice + c->srcZ * src_slice + c->srcY * c->srcPitch + c->srcXInBytes;
		sides[0].end =
			sides[0].begin + slices * src_slice + rows * c->srcPitch + c->WidthInBytes;
	}
	if (is_device(c->dstMemoryType)) {
		sides[1].begin =
			c->dstDevice + c->dstZ * dst_slice + c->dstY * c->dstPitch + c->dstXInBytes;
		sides[1].end =
			sides[1].begin + slices * dst_slice + rows * c->dstPitch + c->WidthInBytes;
	}
}

/* A 2D or 3D copy as one description; which of the driver's calls it came by. */
struct rows {
	enum {
		COPY_2D,
		COPY_2D_UNALIGNED,
		COPY_2D_ASYNC,
		COPY_3D,
		COPY_3D_ASYNC,
		COPY_3D_PEER,
		COPY_3D_PEER_ASYNC,
	} call;
	unsigned int variant;
	CUstream stream;
	CUDA_MEMCPY3D shape; /* a 2D copy has Depth 1 */
};

static CUDA_MEMCPY2D flat(const CUDA_MEMCPY3D *c)
{
	return (CUDA_MEMCPY2D){
		.srcXInBytes = c->srcXInBytes,
		.srcY = c->srcY,
		.srcMemoryType = c->srcMemoryType,
		.srcHost = c->srcHost,
		.srcDevice = c->srcDevice,
		.srcArray = c->srcArray,
		.srcPitch = c->srcPitch,
		.dstXInBytes = c->dstXInBytes,
		.dstY = c->dstY,
		.dstMemoryType = c->dstMemoryType,
		.dstHost = c->dstHost,
		.dstDevice = c->dstDevice,
		.dstArray = c->dstArray,
		.dstPitch = c->dstPitch,
		.WidthInBytes = c->WidthInBytes,
		.Height = c->Height,
	};
}

static CUDA_MEMCPY3D deep(const CUDA_MEMCPY2D *c)
{
	/* A pitch of zero is a row's width where rows are packed. */
	return (CUDA_MEMCPY3D){
		.srcXInBytes = c->srcXInBytes,
		.srcY = c->srcY,
		.srcMemoryType = c->srcMemoryType,
		.srcHost = c->srcHost,
		.srcDevice = c->srcDevice,
		.srcArray = c->srcArray,
		.srcPitch = c->srcPitch ? c->srcPitch : c->WidthInBytes + c->srcXInBytes,
		.dstXInBytes = c->dstXInBytes,
		.dstY = c->dstY,
		.dstMemoryType = c->dstMemoryType,
		.dstHost = c->dstHost,
		.dstDevice = c->dstDevice,
		.dstArray = c->dstArray,
		.dstPitch = c->dstPitch ? c->dstPitch : c->WidthInBytes + c->dstXInBytes,
		.WidthInBytes = c->WidthInBytes,
		.Height = c->Height,
		.Depth = 1,
	};
}

static CUresult issue(const struct rows *r)
{
	CUDA_MEMCPY2D copy = flat(&r->shape);

	switch (r->call) {
	case COPY_2D:
		return driver.cuMemcpy2D_v2[r->variant](&copy);
	case COPY_2D_UNALIGNED:
		return driver.cuMemcpy2DUnaligned_v2[r->variant](&copy);
	case COPY_2D_ASYNC:
		return driver.cuMemcpy2DAsync_v2[r->variant](&copy, r->stream);
	case COPY_3D:
		return driver.cuMemcpy3D_v2[r->variant](&r->shape);
	case COPY_3D_ASYNC:
		return driver.cuMemcpy3DAsync_v2[r->variant](&r->shape, r->stream);
	case COPY_3D_PEER:
		return driver.cuMemcpy3DPeer[r->variant](&r->shape);
	case COPY_3D_PEER_ASYNC:
		return driver.cuMemcpy3DPeerAsync[r->variant](&r->shape, r->stream);
	}
	return CUDA_ERROR_INVALID_VALUE;
}

/* Cut it in two: slices, else rows, else within the row. False: it is a single byte. */
static bool halve(const struct rows *r, struct rows *first, struct rows *second)
{
	CUDA_MEMCPY3D *a = &first->shape, *b = &second->shape;
	size_t at;

	*first = *second = *r;
	if (a->Depth > 1) {
		at = a->Depth / 2;
		b->srcZ += at;
		b->dstZ += at;
		b->Depth -= at;
		a->Depth = at;
	} else if (a->Height > 1) {
		at = a->Height / 2;
		b->srcY += at;
		b->dstY += at;
		b->Height -= at;
		a->Height = at;
	} else {
		at = a->WidthInBytes / 2;
		b->srcXInBytes += at;
		b->dstXInBytes += at;
		b->WidthInBytes -= at;
		a->WidthInBytes = at;
	}
	return at > 0;
}

static CUresult copy_rows(const struct rows *r)
{
	struct rows first, second;
	struct extent sides[2];
	struct launch held;
	CUresult result;

	sides_3d(&r->shape, sides);
	held.captured = launch_captured(r->stream, r->variant);
	result = ranges_begin_copy(&held, sides, 2, r->stream, r->variant);
	if (!result) {
		result = issue(r);
		launch_end(&held);
		return result;
	}
	if (result != CUDA_ERROR_OUT_OF_MEMORY || !halve(r, &first, &second))
		return result;
	result = copy_rows(&first);
	return result ? result : copy_rows(&second);
}

/* A copy between two devices, or in another one's context. */
struct far_rows {
	const struct rows *rows;
	struct owner owners[2]; /* of its sides */
	struct extent sides[2]; /* the source, the destination */
	bool async;
};

/* What the driver would refuse is left to it. */
static bool find_far(const struct rows *r, struct far_rows *f)
{
	const CUDA_MEMCPY3D *c = &r->shape;

	if (!device_several() || !is_device(c->srcMemoryType) || !is_device(c->dstMemoryType) ||
	    c->srcPitch < c->srcXInBytes + c->WidthInBytes ||
	    c->dstPitch < c->dstXInBytes + c->WidthInBytes ||
	    (c->Depth > 1 && ((c->srcHeight && c->srcHeight < c->srcY + c->Height) ||
			      (c->dstHeight && c->dstHeight < c->dstY + c->Height))))
		return false;
	f->rows = r;
	f->async = r->call == COPY_2D_ASYNC || r->call == COPY_3D_ASYNC ||
		   r->call == COPY_3D_PEER_ASYNC;
	sides_3d(c, f->sides);
	return (device_of(f->sides[0].begin) || device_of(f->sides[1].begin)) &&
	       far_apart(f->sides[1].begin, f->sides[0].begin, far_device(r->stream), &f->owners[1],
			 &f->owners[0]);
}

/* As one peer copy, with all of it held; CUDA_ERROR_OUT_OF_MEMORY: it does not fit. */
static CUresult copy_far_at_once(const struct far_rows *f)
{
	const struct device *src = device_of(f->sides[0].begin),
			    *dst = device_of(f->sides[1].begin);
	struct rows peer = *f->rows;
	struct launch held[2];
	CUresult result = CUDA_SUCCESS;

	for (int e = 0; e < 2; e++) {
		launch_none(&held[e]);
		held[e].captured = launch_captured(peer.stream, peer.variant);
	}
	if (src == dst)
		result = ranges_begin_copy(&held[0], f->sides, 2, peer.stream, peer.variant);
	/* In one order everywhere: who holds the first side waits for nobody who wants it. */
	for (int i = 0; src != dst && i < 2 && !result; i++) {
		int e = src < dst ? i : 1 - i;

		result = ranges_begin_copy(&held[e], &f->sides[e], 1, peer.stream, peer.variant);
	}
	if (!result) {
		peer.call = f->async ? COPY_3D_PEER_ASYNC : COPY_3D_PEER;
		peer.shape.srcMemoryType = peer.shape.dstMemoryType = CU_MEMORYTYPE_DEVICE;
		peer.shape.reserved0 = f->owners[0].context;
		peer.shape.reserved1 = f->owners[1].context;
		result = issue(&peer);
	}
	launch_end(&held[0]);
	launch_end(&held[1]);
	return result;
}

/* As a copy for each row, or for each slice without gaps. */
static CUresult copy_far(const struct far_rows *f)
{
	const struct rows *r = f->rows;
	const CUDA_MEMCPY3D *c = &r->shape;
	uint64_t src_slice = c->srcPitch * (c->srcHeight ? c->srcHeight : c->Height);
	uint64_t dst_slice = c->dstPitch * (c->dstHeight ? c->dstHeight : c->Height);
	bool packed = c->srcPitch == c->WidthInBytes && c->dstPitch == c->WidthInBytes;
	uint64_t rows = packed ? c->Height : 1;
	CUresult result = copy_far_at_once(f);

	if (result != CUDA_ERROR_OUT_OF_MEMORY)
		return result;
	result = CUDA_SUCCESS;
	for (uint64_t z = 0; z < c->Depth && !result; z++)
		for (uint64_t y = 0; y < c->Height && !result; y += rows)
			result =
				copy_bytes(f->sides[1].begin + z * dst_slice + y * c->dstPitch,
					   f->sides[0].begin + z * src_slice + y * c->srcPitch,
					   rows * c->WidthInBytes, f->async, r->stream, r->variant);
	return result;
}

static CUresult copy_shape(int call, unsigned int variant, const CUDA_MEMCPY3D *shape,
			   CUstream stream)
{
	struct rows rows = { .call = call, .variant = variant, .stream = stream, .shape = *shape };
	struct far_rows far;
	CUresult result;

	if (shape->WidthInBytes && shape->Height && shape->Depth && find_far(&rows, &far))
		return copy_far(&far);
	if (gate_enter()) {
		result = issue(&rows);
		gate_leave();
		return result;
	}
	if (!shape->WidthInBytes || !shape->Height || !shape->Depth)
		return issue(&rows);
	return copy_rows(&rows);
}

static CUresult copy_flat(int call, unsigned int variant, const CUDA_MEMCPY2D *copy,
			  CUstream stream)
{
	CUDA_MEMCPY3D shape = deep(copy);

	return copy_shape(call, variant, &shape, stream);
}

CUresult hook_cuMemcpy2D_v2(unsigned int variant, const CUDA_MEMCPY2D *copy)
{
	return copy ? copy_flat(COPY_2D, variant, copy, NULL) : driver.cuMemcpy2D_v2[variant](copy);
}

CUresult hook_cuMemcpy2DUnaligned_v2(unsigned int variant, const CUDA_MEMCPY2D *copy)
{
	return copy ? copy_flat(COPY_2D_UNALIGNED, variant, copy, NULL)
		    : driver.cuMemcpy2DUnaligned_v2[variant](copy);
}

CUresult hook_cuMemcpy2DAsync_v2(unsigned int variant, const CUDA_MEMCPY2D *copy, CUstream stream)
{
	return copy ? copy_flat(COPY_2D_ASYNC, variant, copy, stream)
		    : driver.cuMemcpy2DAsync_v2[variant](copy, stream);
}

CUresult hook_cuMemcpy3D_v2(unsigned int variant, const CUDA_MEMCPY3D *copy)
{
	return copy ? copy_shape(COPY_3D, variant, copy, NULL)
		    : driver.cuMemcpy3D_v2[variant](copy);
}

CUresult hook_cuMemcpy3DAsync_v2(unsigned int variant, const CUDA_MEMCPY3D *copy, CUstream stream)
{
	return copy ? copy_shape(COPY_3D_ASYNC, variant, copy, stream)
		    : driver.cuMemcpy3DAsync_v2[variant](copy, stream);
}

CUresult hook_cuMemcpy3DPeer(unsigned int variant, const CUDA_MEMCPY3D *copy)
{
	return copy ? copy_shape(COPY_3D_PEER, variant, copy, NULL)
		    : driver.cuMemcpy3DPeer[variant](copy);
}

CUresult hook_cuMemcpy3DPeerAsync(unsigned int variant, const CUDA_MEMCPY3D *copy, CUstream stream)
{
	return copy ? copy_shape(COPY_3D_PEER_ASYNC, variant, copy, stream)
		    : driver.cuMemcpy3DPeerAsync[variant](copy, stream);
}

/* What an operand of a 3D batch covers. Between pointers an element is a byte. */
static CUresult operand_side(const CUmemcpy3DOperand *operand, const CUmemcpy3DOperand *other,
			     const CUextent3D *e, struct extent *side)
{
	uint64_t row = operand->op.rowLength ? operand->op.rowLength : e->width;
	uint64_t layer = operand->op.layerHeight ? operand->op.layerHeight : e->height;

	*side = (struct extent){ 0, 0 };
	if (operand->type != CU_MEMCPY_OPERAND_TYPE_POINTER || !device_of(operand->op.ptr) ||
	    !e->width || !e->height || !e->depth)
		return CUDA_SUCCESS;
	if (other->type != CU_MEMCPY_OPERAND_TYPE_POINTER) {
		log_warn("cuMemcpy3DBatchAsync between an array and memory that is paged is not "
			 "supported");
		return CUDA_ERROR_NOT_SUPPORTED;
	}
	side->begin = operand->op.ptr;
	side->end = side->begin + ((e->depth - 1) * layer + e->height - 1) * row + e->width;
	return CUDA_SUCCESS;
}

/* The driver's calls that take descriptions of this kind. */
enum ops_call { OPS_BATCH, OPS_BATCH_V2, OPS_ONE };

static CUresult issue_ops(enum ops_call call, unsigned int variant, size_t count,
			  CUDA_MEMCPY3D_BATCH_OP *ops, size_t *fail_idx, unsigned long long flags,
			  CUstream stream)
{
	switch (call) {
	case OPS_BATCH:
		return driver.cuMemcpy3DBatchAsync[variant](count, ops, fail_idx, flags, stream);
	case OPS_BATCH_V2:
		return driver.cuMemcpy3DBatchAsync_v2[variant](count, ops, flags, stream);
	case OPS_ONE:
		return driver.cuMemcpy3DWithAttributesAsync[variant](ops, flags, stream);
	}
	return CUDA_ERROR_INVALID_VALUE;
}

/* A batch promises no order among its copies, so each is a batch of its own. */
static CUresult copy_ops(enum ops_call call, unsigned int variant, size_t count,
			 CUDA_MEMCPY3D_BATCH_OP *ops, size_t *fail_idx, unsigned long long flags,
			 CUstream stream)
{
	bool entered = gate_enter();
	CUresult result = CUDA_SUCCESS;
	size_t failed;

	if (entered || !ops) {
		result = issue_ops(call, variant, count, ops, fail_idx, flags, stream);
		if (entered)
			gate_leave();
		return result;
	}
	for (size_t i = 0; i < count && !result; i++) {
		struct launch held = { .captured = launch_captured(stream, variant) };
		struct extent sides[2];

		result = operand_side(&ops[i].src, &ops[i].dst, &ops[i].extent, &sides[0]);
		if (!result)
			result = operand_side(&ops[i].dst, &ops[i].src, &ops[i].extent, &sides[1]);
		if (!result)
			result = ranges_begin_copy(&held, sides, 2, stream, variant);
		if (!result) {
			result = issue_ops(call, variant, 1, &ops[i], &failed, flags, stream);
			launch_end(&held);
		}
		if (result && fail_idx)
			*fail_idx = i;
	}
	return result;
}

CUresult hook_cuMemcpy3DBatchAsync(unsigned int variant, size_t count, CUDA_MEMCPY3D_BATCH_OP *ops,
				   size_t *fail_idx, unsigned long long flags, CUstream stream)
{
	return copy_ops(OPS_BATCH, variant, count, ops, fail_idx, flags, stream);
}

CUresult hook_cuMemcpy3DBatchAsync_v2(unsigned int variant, size_t count,
				      CUDA_MEMCPY3D_BATCH_OP *ops, unsigned long long flags,
				      CUstream stream)
{
	return copy_ops(OPS_BATCH_V2, variant, count, ops, NULL, flags, stream);
}

CUresult hook_cuMemcpy3DWithAttributesAsync(unsigned int variant, CUDA_MEMCPY3D_BATCH_OP *op,
					    unsigned long long flags, CUstream stream)
{
	return copy_ops(OPS_ONE, variant, 1, op, NULL, flags, stream);
}

/* Bytes between an array of one dimension and device memory, which end in the array's elements. */
static CUresult copy_array(bool to_array, unsigned int variant, CUarray array, size_t offset,
			   CUdeviceptr at, size_t bytes)
{
	struct extent side = { at, at + bytes };
	size_t half = bytes / 2 & ~(size_t)15; /* no element is larger */
	bool entered = gate_enter();
	struct launch held = { .captured = false };
	CUresult result = CUDA_SUCCESS;

	if (!entered)
		result = ranges_begin_copy(&held, &side, 1, NULL, variant);
	if (result == CUDA_ERROR_OUT_OF_MEMORY && half) {
		result = copy_array(to_array, variant, array, offset, at, half);
		return result ? result
			      : copy_array(to_array, variant, array, offset + half, at + half,
					   bytes - half);
	}
	if (!result)
		result = to_array ? driver.cuMemcpyDtoA_v2[variant](array, offset, at, bytes)
				  : driver.cuMemcpyAtoD_v2[variant](at, array, offset, bytes);
	if (entered)
		gate_leave();
	else
		launch_end(&held);
	return result;
}

CUresult hook_cuMemcpyAtoD_v2(unsigned int variant, CUdeviceptr dst, CUarray src, size_t offset,
			      size_t bytes)
{
	return copy_array(false, variant, src, offset, dst, bytes);
}

CUresult hook_cuMemcpyDtoA_v2(unsigned int variant, CUarray dst, size_t offset, CUdeviceptr src,
			      size_t bytes)
{
	return copy_array(true, variant, dst, offset, src, bytes);
}

/* ---- nodes of graphs ---- */

void rows_of_copy(const CUDA_MEMCPY3D *copy, struct extent sides[2])
{
	sides[0] = sides[1] = (struct extent){ 0, 0 };
	if (copy->WidthInBytes && copy->Height && copy->Depth)
		sides_3d(copy, sides);
}

CUresult rows_fix_copy(const CUDA_MEMCPY3D *copy)
{
	struct extent sides[2];

	rows_of_copy(copy, sides);
	return ranges_fix(sides, 2, "a copy in a graph");
}
