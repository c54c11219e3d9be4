/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Checksums of VRAM, taken by the device. There are no dirty bits on a GPU: a
 * chunk whose checksum is still that of its copy in a lower tier has not been
 * written to, and need not be copied down again.
 */
#ifndef GREENBOOST_CHECKSUM_H
#define GREENBOOST_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>

#include "driver.h"
#include "kernels/checksum.h"

struct summer {
	bool loaded;
	CUfunction kernel; /* NULL: none can be taken, and every chunk counts as changed */
	CUstream stream;
	struct checksum *blocks; /* what the kernel writes, in host memory */
};

/* Load the kernel into the current context, the first time. Failing is no error: see `kernel`. */
void summer_init(struct summer *summer);

/* The checksum of device memory, of a multiple of 16 bytes. Waits for it. */
CUresult summer_take(struct summer *summer, CUdeviceptr data, size_t bytes, struct checksum *sum);

#endif
