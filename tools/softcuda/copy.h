/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copies and memsets as work. */
#ifndef SOFTCUDA_COPY_H
#define SOFTCUDA_COPY_H

#include "space.h"
#include "work.h"

/* One end of a copy. */
struct end {
	uintptr_t start;
	size_t pitch, slice; /* bytes from one row, and from one slice, to the next */
	enum range_kind kind;
};

/* A box of bytes from one end to the other. */
struct box {
	struct end dst, src;
	size_t width, height, depth; /* bytes, rows, slices */
};

/* Fills in an end's kind. With device, it must be what a device can reach. */
CUresult end_check(const struct box *box, struct end *end, bool device);

/*
 * May contexts of these devices name the ends? Memory of cuMemAlloc may be named by all, but a
 * mapping by those alone that were given access, also if others could reach it.
 */
bool box_granted(const struct box *box, CUdevice dst, CUdevice src);

/*
 * What a copy descriptor asks for, both ends checked. CUDA_ERROR_NOT_SUPPORTED:
 * it names an array.
 */
CUresult box_of_2d(const CUDA_MEMCPY2D *copy, struct box *box);
CUresult box_of_3d(const CUDA_MEMCPY3D *copy, struct box *box);

/* The copy; with stage, the source's bytes are taken now. NULL: no memory. */
struct work *copy_work(const struct box *box, bool stage);

/* For graphs: checked, and nothing taken before it runs. */
CUresult copy_work_3d(const CUDA_MEMCPY3D *copy, struct work **work);
CUresult memset_work(const CUDA_MEMSET_NODE_PARAMS *params, struct work **work);

/* What works of the two kinds were made of. */
void copy_params_of_work(const struct work *work, CUDA_MEMCPY3D *copy);
void memset_params_of_work(const struct work *work, CUDA_MEMSET_NODE_PARAMS *params);

#endif
