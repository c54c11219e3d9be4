/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is said when a kernel has touched an address where nothing is. It may have
 * followed a pointer that nobody saw to a chunk that is not in VRAM; or it is the
 * program's own mistake. The driver does not tell the address, and fails every call
 * from then on, so whoever gets that answer first has it said.
 */
#ifndef GREENBOOST_FAULT_H
#define GREENBOOST_FAULT_H

#include <stddef.h>

#include "driver.h"

struct device;

/* Say it, once a process. locked: the device whose lock the caller holds, NULL if none. */
void fault_say(struct device *locked);

/* Of any call of the driver's; in no lock. Returns its result. */
static inline CUresult fault_check(CUresult result)
{
	if (__builtin_expect(result == CUDA_ERROR_ILLEGAL_ADDRESS, 0))
		fault_say(NULL);
	return result;
}

#endif
