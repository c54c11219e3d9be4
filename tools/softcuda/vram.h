/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The physical memory of the devices: one memfd each, given out in blocks.
 *
 * A block need not be contiguous in the memfd, as memory behind a page table
 * need not be: what is free can always be had, however scattered it lies.
 */
#ifndef SOFTCUDA_VRAM_H
#define SOFTCUDA_VRAM_H

#include <stdbool.h>

#include "cuda_abi.h"

#define VRAM_UNIT ((size_t)64 << 10) /* what blocks are made of */
#define VRAM_CREATE_UNIT ((size_t)2 << 20) /* granularity of cuMemCreate */

struct vram_block;

/* Makes the memory of that many devices, of bytes each. */
CUresult vram_init(int devices, size_t bytes);

/* A block of bytes, a multiple of VRAM_UNIT, with one reference. Contents: what was there before.
 */
CUresult vram_alloc(int device, size_t bytes, struct vram_block **block);
struct vram_block *vram_get(struct vram_block *block);
void vram_put(struct vram_block *block);

size_t vram_block_bytes(const struct vram_block *block);
int vram_block_device(const struct vram_block *block);

/*
 * Maps the block's first bytes at address, over whatever is there. False: the
 * system has no more mappings, and an unknown part was mapped.
 */
bool vram_map(const struct vram_block *block, uintptr_t address, size_t bytes, int protection);

/* Bytes free, and in all. */
void vram_totals(int device, size_t *free, size_t *total);

#endif
