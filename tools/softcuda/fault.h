/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Says which kernel or copy touched an address that is not mapped, before the process dies of it
 * or (SOFTCUDA_SPOIL) every call from then on fails. */
#ifndef SOFTCUDA_FAULT_H
#define SOFTCUDA_FAULT_H

#include "cuda_abi.h"
#include "softcuda.h"

void fault_init(void);

/* Runs a kernel on this thread, unless one has spoilt the device. */
void fault_run(softcuda_kernel_fn fn, const struct softcuda_launch *launch, void **params);

/* CUDA_ERROR_ILLEGAL_ADDRESS once a kernel has spoilt the device. */
CUresult fault_error(void);

#endif
