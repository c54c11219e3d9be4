/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The devices: what they are called and can do. */
#ifndef SOFTCUDA_DEVICE_H
#define SOFTCUDA_DEVICE_H

#include <stdbool.h>

#include "cuda_abi.h"

CUresult devices_init(int count);
bool device_exists(CUdevice device);

/* What device.c and kernel.c both tell. */
#define DEVICE_MAX_THREADS_PER_BLOCK 1024
#define DEVICE_MAX_THREADS_PER_MULTIPROCESSOR 2048
#define DEVICE_MAX_SHARED_BYTES (48 << 10)
#define DEVICE_MAX_SHARED_OPTIN_BYTES (227 << 10)
#define DEVICE_MAX_BLOCKS_PER_MULTIPROCESSOR 32
#define DEVICE_COMPUTE_MAJOR 9
#define DEVICE_COMPUTE_MINOR 0

#endif
