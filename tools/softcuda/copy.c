// SPDX-License-Identifier: GPL-2.0-or-later
#include "copy.h"

#include <stdlib.h>
#include <string.h>

#include "entry.h"

struct copy {
	struct work work;
	struct box box;
	unsigned char stage[];
};

static bool packed(const struct box *box, const struct end *end)
{
	return (box->height == 1 || end->pitch == box->width) &&
	       (box->depth == 1 || end->slice == box->width * box->height);
}

static void copy_box(const struct box *box)
{
	unsigned char *dst = (unsigned char *)box->dst.start;
	const unsigned char *src = (const unsigned char *)box->src.start;

	if (packed(box, &box->dst) && packed(box, &box->src)) {
		memmove(dst, src, box->width * box->height * box->depth);
		return;
	}
	for (size_t z = 0; z < box->depth; z++)
		for (size_t y = 0; y < box->height; y++)
			memmove(dst + z * box->dst.slice + y * box->dst.pitch,
				src + z * box->src.slice + y * box->src.pitch, box->width);
}

static void copy_run(struct work *work, const struct place *place)
{
	(void)place;
	copy_box(&((struct copy *)work)->box);
}

static void copy_release(struct work *work)
{
	free(work);
}

struct work *copy_work(const struct box *box, bool stage)
{
	size_t bytes = stage ? box->width * box->height * box->depth : 0;
	struct copy *copy = malloc(sizeof *copy + bytes);
	struct box in = *box;

	if (!copy)
		return NULL;
	work_init(&copy->work, CU_GRAPH_NODE_TYPE_MEMCPY, "a copy", copy_run, copy_release);
	copy->box = *box;
	if (stage) {
		struct end staged = { (uintptr_t)copy->stage, box->width, box->width * box->height,
				      RANGE_PAGEABLE };

		in.dst = staged;
		copy_box(&in);
		copy->box.src = staged;
	}
	return &copy->work;
}

/* Bytes from the first to the last that the box touches at an end; false when out of all bounds. */
static bool reach(const struct box *box, const struct end *end, size_t *bytes)
{
	size_t slices, rows;

	return !__builtin_mul_overflow(box->depth - 1, end->slice, &slices) &&
	       !__builtin_mul_overflow(box->height - 1, end->pitch, &rows) &&
	       !__builtin_add_overflow(slices, rows, bytes) &&
	       !__builtin_add_overflow(*bytes, box->width, bytes);
}

CUresult end_check(const struct box *box, struct end *end, bool device)
{
	size_t bytes;

	if (!box->width || !box->height || !box->depth)
		return CUDA_SUCCESS;
	if (!reach(box, end, &bytes))
		return CUDA_ERROR_INVALID_VALUE;
	end->kind = space_classify(end->start, bytes);
	if (end->kind == RANGE_BROKEN || (device && end->kind == RANGE_PAGEABLE))
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}

static bool end_granted(const struct box *box, const struct end *end, CUdevice device)
{
	size_t bytes;

	return end->kind != RANGE_DEVICE || !reach(box, end, &bytes) ||
	       space_grants(end->start, bytes, device);
}

bool box_granted(const struct box *box, CUdevice dst, CUdevice src)
{
	return end_granted(box, &box->dst, dst) && end_granted(box, &box->src, src);
}

/* One end of a descriptor, as 2D and 3D copies name it. */
struct described {
	size_t x, y, z;
	int type;
	uintptr_t host, device;
	size_t pitch, height;
};

static CUresult describe(const struct described *from, struct box *box, struct end *end)
{
	static atomic_flag said = ATOMIC_FLAG_INIT;
	size_t height = from->height ? from->height : box->height;

	switch (from->type) {
	case CU_MEMORYTYPE_HOST:
		end->start = from->host;
		break;
	case CU_MEMORYTYPE_DEVICE:
	case CU_MEMORYTYPE_UNIFIED:
		end->start = from->device;
		break;
	case CU_MEMORYTYPE_ARRAY:
		return entry_unsupported("copying to or from an array", &said);
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
	/* A single row needs no pitch. */
	end->pitch = from->pitch ? from->pitch : from->x + box->width;
	if (end->pitch < from->x + box->width || height < from->y + box->height)
		return CUDA_ERROR_INVALID_VALUE;
	if (__builtin_mul_overflow(end->pitch, height, &end->slice))
		return CUDA_ERROR_INVALID_VALUE;
	end->start += from->x + from->y * end->pitch + from->z * end->slice;
	return end_check(box, end, from->type == CU_MEMORYTYPE_DEVICE);
}

CUresult box_of_3d(const CUDA_MEMCPY3D *copy, struct box *box)
{
	const struct described src = {
		.x = copy->srcXInBytes,
		.y = copy->srcY,
		.z = copy->srcZ,
		.type = copy->srcMemoryType,
		.host = (uintptr_t)copy->srcHost,
		.device = copy->srcDevice,
		.pitch = copy->srcPitch,
		.height = copy->srcHeight,
	};
	const struct described dst = {
		.x = copy->dstXInBytes,
		.y = copy->dstY,
		.z = copy->dstZ,
		.type = copy->dstMemoryType,
		.host = (uintptr_t)copy->dstHost,
		.device = copy->dstDevice,
		.pitch = copy->dstPitch,
		.height = copy->dstHeight,
	};
	CUresult error;

	if (copy->srcLOD || copy->dstLOD)
		return CUDA_ERROR_INVALID_VALUE;
	*box = (struct box){ .width = copy->WidthInBytes,
			     .height = copy->Height,
			     .depth = copy->Depth };
	error = describe(&src, box, &box->src);
	return error ? error : describe(&dst, box, &box->dst);
}

CUresult box_of_2d(const CUDA_MEMCPY2D *copy, struct box *box)
{
	const CUDA_MEMCPY3D same = {
		.srcXInBytes = copy->srcXInBytes,
		.srcY = copy->srcY,
		.srcMemoryType = copy->srcMemoryType,
		.srcHost = copy->srcHost,
		.srcDevice = copy->srcDevice,
		.srcPitch = copy->srcPitch,
		.srcHeight = copy->srcY + copy->Height,
		.dstXInBytes = copy->dstXInBytes,
		.dstY = copy->dstY,
		.dstMemoryType = copy->dstMemoryType,
		.dstHost = copy->dstHost,
		.dstDevice = copy->dstDevice,
		.dstPitch = copy->dstPitch,
		.dstHeight = copy->dstY + copy->Height,
		.WidthInBytes = copy->WidthInBytes,
		.Height = copy->Height,
		.Depth = 1,
	};

	return box_of_3d(&same, box);
}

CUresult copy_work_3d(const CUDA_MEMCPY3D *copy, struct work **work)
{
	struct box box;
	CUresult error = box_of_3d(copy, &box);

	if (error)
		return error;
	*work = copy_work(&box, false);
	return *work ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void copy_params_of_work(const struct work *work, CUDA_MEMCPY3D *copy)
{
	const struct box *box = &((const struct copy *)work)->box;
	bool many = box->depth > 1;

	/* As the driver has it: no pitch where there is one row, no height where there is one
	 * slice.
	 */
	*copy = (CUDA_MEMCPY3D){
		.srcMemoryType =
			box->src.kind == RANGE_DEVICE ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST,
		.srcPitch = many || box->height > 1 ? box->src.pitch : 0,
		.srcHeight = many ? box->src.slice / box->src.pitch : 0,
		.dstMemoryType =
			box->dst.kind == RANGE_DEVICE ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST,
		.dstPitch = many || box->height > 1 ? box->dst.pitch : 0,
		.dstHeight = many ? box->dst.slice / box->dst.pitch : 0,
		.WidthInBytes = box->width,
		.Height = box->height,
		.Depth = box->depth,
	};
	if (box->src.kind == RANGE_DEVICE)
		copy->srcDevice = box->src.start;
	else
		copy->srcHost = (const void *)box->src.start;
	if (box->dst.kind == RANGE_DEVICE)
		copy->dstDevice = box->dst.start;
	else
		copy->dstHost = (void *)box->dst.start;
}
