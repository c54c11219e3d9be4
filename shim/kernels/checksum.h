/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checksum of a chunk, in C for the device and for the host alike.
 *
 * Two sums of 64 bits over all words, each mixed with its place, so that a
 * change of any one word changes both, and any other goes unnoticed once in
 * 2^64 times at most. Sums, so that threads can take words in any order. Against
 * accident, not malice: only the program itself could want to deceive it.
 */
#ifndef GREENBOOST_CHECKSUM_KERNEL_H
#define GREENBOOST_CHECKSUM_KERNEL_H

#include <stdint.h>

#ifdef __CUDACC__
#define CHECKSUM_INLINE static __device__ __forceinline__
#else
#define CHECKSUM_INLINE static inline
#endif

#define CHECKSUM_ENTRY "greenboost_checksum"
#define CHECKSUM_BLOCKS 64 /* each writes one struct checksum */
#define CHECKSUM_THREADS 512

struct checksum {
	uint64_t sum[2];
};

/* The word at that place; the finalizer is rrmxmx's, by Pelle Evensen. */
CHECKSUM_INLINE void checksum_add(struct checksum *c, uint64_t word, uint64_t place)
{
	uint64_t m = word + (place + 1) * UINT64_C(0x9e3779b97f4a7c15);

	m ^= (m >> 49 | m << 15) ^ (m >> 24 | m << 40);
	m *= UINT64_C(0x9fb21c651e98df25);
	m ^= m >> 28;
	m *= UINT64_C(0x9fb21c651e98df25);
	m ^= m >> 28;
	c->sum[0] += m;
	c->sum[1] += (m >> 31 | m << 33) * UINT64_C(0xd6e8feb86659fd93);
}

#endif
