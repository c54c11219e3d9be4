// SPDX-License-Identifier: GPL-2.0-or-later
/* Memsets of rows. All rows are held at once where they fit, else half of them at a time. */
#define _GNU_SOURCE
#include "gate.h"
#include "ranges.h"

/* A 2D memset; element is the width of a value in bytes. */
struct fill {
	unsigned int variant, element, value;
	bool async;
	CUdeviceptr dst;
	size_t pitch, width, height; /* width in elements */
	CUstream stream;
};

/* width: in bytes */
static struct extent extent_of(CUdeviceptr dst, size_t pitch, size_t width, size_t height)
{
	return (struct extent){ dst, dst + (height - 1) * pitch + width };
}

static CUresult issue_fill(const struct fill *f)
{
	unsigned int v = f->variant;

	switch (f->element) {
	case 1:
		return f->async ? driver.cuMemsetD2D8Async[v](f->dst, f->pitch,
							      (unsigned char)f->value, f->width,
							      f->height, f->stream)
				: driver.cuMemsetD2D8_v2[v](f->dst, f->pitch,
							    (unsigned char)f->value, f->width,
							    f->height);
	case 2:
		return f->async ? driver.cuMemsetD2D16Async[v](f->dst, f->pitch,
							       (unsigned short)f->value, f->width,
							       f->height, f->stream)
				: driver.cuMemsetD2D16_v2[v](f->dst, f->pitch,
							     (unsigned short)f->value, f->width,
							     f->height);
	default:
		return f->async ? driver.cuMemsetD2D32Async[v](f->dst, f->pitch, f->value, f->width,
							       f->height, f->stream)
				: driver.cuMemsetD2D32_v2[v](f->dst, f->pitch, f->value, f->width,
							     f->height);
	}
}

static CUresult fill_rows(const struct fill *f)
{
	struct extent side = extent_of(f->dst, f->pitch, f->width * f->element, f->height);
	struct fill first = *f, second = *f;
	struct launch held;
	CUresult result;

	held.captured = launch_captured(f->stream, f->variant);
	result = ranges_begin_copy(&held, &side, 1, f->stream, f->variant);
	if (!result) {
		result = issue_fill(f);
		launch_end(&held);
		return result;
	}
	if (result != CUDA_ERROR_OUT_OF_MEMORY || (f->height == 1 && f->width == 1))
		return result;
	if (f->height > 1) {
		first.height = f->height / 2;
		second.height -= first.height;
		second.dst += first.height * f->pitch;
	} else {
		first.width = f->width / 2;
		second.width -= first.width;
		second.dst += first.width * f->element;
	}
	result = fill_rows(&first);
	return result ? result : fill_rows(&second);
}

static CUresult fill(const struct fill *f)
{
	CUresult result;

	if (gate_enter()) {
		result = issue_fill(f);
		gate_leave();
		return result;
	}
	return f->width && f->height ? fill_rows(f) : issue_fill(f);
}

CUresult hook_cuMemsetD2D8_v2(unsigned int variant, CUdeviceptr dst, size_t pitch,
			      unsigned char value, size_t width, size_t height)
{
	return fill(&(struct fill){ variant, 1, value, false, dst, pitch, width, height, NULL });
}

CUresult hook_cuMemsetD2D16_v2(unsigned int variant, CUdeviceptr dst, size_t pitch,
			       unsigned short value, size_t width, size_t height)
{
	return fill(&(struct fill){ variant, 2, value, false, dst, pitch, width, height, NULL });
}

CUresult hook_cuMemsetD2D32_v2(unsigned int variant, CUdeviceptr dst, size_t pitch,
			       unsigned int value, size_t width, size_t height)
{
	return fill(&(struct fill){ variant, 4, value, false, dst, pitch, width, height, NULL });
}

CUresult hook_cuMemsetD2D8Async(unsigned int variant, CUdeviceptr dst, size_t pitch,
				unsigned char value, size_t width, size_t height, CUstream stream)
{
	return fill(&(struct fill){ variant, 1, value, true, dst, pitch, width, height, stream });
}

CUresult hook_cuMemsetD2D16Async(unsigned int variant, CUdeviceptr dst, size_t pitch,
				 unsigned short value, size_t width, size_t height, CUstream stream)
{
	return fill(&(struct fill){ variant, 2, value, true, dst, pitch, width, height, stream });
}

CUresult hook_cuMemsetD2D32Async(unsigned int variant, CUdeviceptr dst, size_t pitch,
				 unsigned int value, size_t width, size_t height, CUstream stream)
{
	return fill(&(struct fill){ variant, 4, value, true, dst, pitch, width, height, stream });
}

/* ---- nodes of graphs ---- */

struct extent rows_of_fill(const CUDA_MEMSET_NODE_PARAMS *params)
{
	if (!params->width || !params->height)
		return (struct extent){ 0, 0 };
	return extent_of(params->dst, params->pitch, params->width * params->elementSize,
			 params->height);
}

CUresult rows_fix_fill(const CUDA_MEMSET_NODE_PARAMS *params)
{
	const struct extent side = rows_of_fill(params);

	return ranges_fix(&side, 1, "a memset in a graph");
}
