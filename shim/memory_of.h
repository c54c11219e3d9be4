/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the stand-in for NVML asks the stand-in for the driver, found by its name in the process. */
#ifndef GREENBOOST_MEMORY_OF_H
#define GREENBOOST_MEMORY_OF_H

#include <stdint.h>

enum memory_of {
	MEMORY_UNKNOWN, /* this process has not used that device by CUDA */
	MEMORY_WHOLE, /* all that programs are promised */
	MEMORY_BELOW, /* what there is besides VRAM: how much of that is not decided yet */
};

typedef enum memory_of (*greenboost_memory_of_fn)(const unsigned char uuid[16], uint64_t *total,
						  uint64_t *available);

enum memory_of greenboost_memory_of(const unsigned char uuid[16], uint64_t *total,
				    uint64_t *available);

#endif
