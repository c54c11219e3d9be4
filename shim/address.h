/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where memory that is paged lies. A launch's parameters are searched for addresses, and
 * small kernels are given pairs of 32-bit integers: read as one word, a pair with a small
 * second half is an address of where the driver puts reservations (from 0x3_00000000 on
 * with an H100). In a Llama's decoding 20 chunks of weights were named so by chance. The
 * upper half of an address here is seldom a size or the number of anything.
 */
#ifndef GREENBOOST_ADDRESS_H
#define GREENBOOST_ADDRESS_H

#include <stddef.h>

#include "driver.h"

/*
 * cuMemAddressReserve, far up if it may be; else where the driver likes. Alignment as there: 0, or
 * a power of two. Any thread.
 */
CUresult address_reserve(CUdeviceptr *base, size_t bytes, size_t alignment);

#endif
