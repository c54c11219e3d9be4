// SPDX-License-Identifier: GPL-2.0-or-later
// What checksum.ptx is made from: see ptx in ../Makefile.
#include "checksum.h"

// data: words, two at a time. Writes one sum a block, which the host adds up: no atomics, and nothing
// to be cleared beforehand.
extern "C" __global__ void __launch_bounds__(CHECKSUM_THREADS)
	greenboost_checksum(const ulonglong2 *__restrict__ data, uint64_t pairs, struct checksum *blocks)
{
	__shared__ struct checksum warps[CHECKSUM_THREADS / 32];
	struct checksum c = { { 0, 0 } };
	const uint64_t step = (uint64_t)gridDim.x * blockDim.x;

#pragma unroll 4
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < pairs; i += step) {
		const ulonglong2 two = __ldcs(data + i); // the application's data stays in the cache

		checksum_add(&c, two.x, 2 * i);
		checksum_add(&c, two.y, 2 * i + 1);
	}
	for (int s = 0; s < 2; s++)
		for (int lane = 16; lane; lane /= 2)
			c.sum[s] += __shfl_down_sync(~0u, c.sum[s], lane);
	if (threadIdx.x % 32 == 0)
		warps[threadIdx.x / 32] = c;
	__syncthreads();
	if (threadIdx.x == 0) {
		for (int w = 1; w < CHECKSUM_THREADS / 32; w++) {
			c.sum[0] += warps[w].sum[0];
			c.sum[1] += warps[w].sum[1];
		}
		blocks[blockIdx.x] = c;
	}
}
