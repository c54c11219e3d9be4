/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Allocations and their ends, for those who order them by streams. */
#ifndef GREENBOOST_MEMORY_H
#define GREENBOOST_MEMORY_H

#include "residency.h"

/* In no lock of the device's. */
CUresult memory_allocate(struct device *device, CUdeviceptr *dptr, size_t bytes);

/* The parts that allocations of every kind are made of. */

/* 1/4 of all indexes is for memory that the program has not put anywhere yet (vmm_account.c). */
#define MEMORY_INDEXES (MAX_CHUNKS / 4 * 3)

/* Have the daemon promise the tiers for it. In device->allocate. */
CUresult memory_admit(struct device *device, struct held_allocation allocation);

/*
 * VRAM that the driver is to be asked for beside the slots, which give way to it.
 * CUDA_ERROR_OUT_OF_MEMORY: page it instead. must: it cannot be paged, so that only the slots
 * without which nothing moves are kept from it. In device->allocate.
 */
CUresult memory_take_direct(struct device *device, uint64_t bytes, bool must);
/* The driver has it back. In device->allocate. */
void memory_give_direct(struct device *device, uint64_t bytes);

/*
 * While everything fits, launches are not looked at, so what was entered in the tables must
 * be mapped before the program may use it. In device->allocate.
 */
CUresult memory_map_new(struct device *device, struct allocation *allocation, uint64_t begin,
			uint64_t end);

/* Wait for everything the program has given the device, whichever context is current. */
CUresult memory_synchronize(struct device *device);

/* Have the pager take it apart. In the lock and device->allocate. */
void memory_end(struct device *device, struct ending *ending);

/* The allocation that begins here, taken out of everybody's reach; NULL: none of ours, or freed
 * twice. */
struct allocation *memory_claim(struct device *device, CUdeviceptr dptr);

/* The end of a paged allocation that was claimed and is used no more. In device->allocate. */
void memory_take_apart(struct device *device, struct allocation *allocation);

/*
 * The driver had no room for what the program wants of it alone: slots give way to
 * so many bytes, for good. False: they are as few as they can be.
 */
bool memory_give_way(struct device *device, uint64_t bytes);

/* ordered.c */

/*
 * End what streams have freed and are done with; wait: also what they are not done
 * with yet. False: there was nothing to end. In device->allocate.
 */
bool ordered_reclaim(struct device *device, bool wait);

#endif
