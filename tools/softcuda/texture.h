/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SOFTCUDA_TEXTURE_H
#define SOFTCUDA_TEXTURE_H

#include "cuda_abi.h"

/* The memory that a texture object fetches from; NULL: it is none. */
const void *texture_memory(CUtexObject texture);

#endif
