/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Allocations and their ends, for those who order them by streams. */
#ifndef GREENBOOST_MEMORY_H
#define GREENBOOST_MEMORY_H

#include "residency.h"

/* In no lock of the device's. */
CUresult memory_allocate(struct device *device, CUdeviceptr *dptr, size_t bytes);

/* The allocation that begins here, taken out of everybody's reach; NULL: none of ours, or freed
 * twice. */
struct allocation *memory_claim(struct device *device, CUdeviceptr dptr);
void memory_unclaim(struct device *device, struct allocation *allocation);

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
