/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Values that a stream writes or waits for, as work. */
#ifndef SOFTCUDA_MEMOP_H
#define SOFTCUDA_MEMOP_H

#include "work.h"

CUresult memop_work(const CUDA_BATCH_MEM_OP_NODE_PARAMS *params, struct work **work);

/* What such a work was made of; the operations stay its own. */
void memop_params_of_work(const struct work *work, CUDA_BATCH_MEM_OP_NODE_PARAMS *params);

#endif
