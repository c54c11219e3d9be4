/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Launches of kernels as work. */
#ifndef SOFTCUDA_LAUNCH_H
#define SOFTCUDA_LAUNCH_H

#include "work.h"

/* The launch that a graph's node describes; parameters are copied now. */
CUresult launch_work_of_node(const CUDA_KERNEL_NODE_PARAMS *params, struct work **work);

/* The other way round; pointers in *params are good while the work is. */
void launch_params_of_work(const struct work *work, CUDA_KERNEL_NODE_PARAMS *params);

/* Attributes stay when a node's parameters are changed. */
void launch_keep_attributes(struct work *work, const struct work *old);

/* An attribute of a launch, its value's 64 bytes; CUDA_ERROR_INVALID_VALUE: there is none. */
CUresult launch_attribute_of_work(const struct work *work, int attribute, void *value);

#endif
