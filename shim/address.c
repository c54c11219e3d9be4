// SPDX-License-Identifier: GPL-2.0-or-later
#include "address.h"

#include <stdatomic.h>

/* Far from where Linux puts programs, libraries, heaps and stacks. */
#define FIRST ((CUdeviceptr)0x4b1700000000)
#define LAST ((CUdeviceptr)0x500000000000)

/* The driver heeds a place only at its multiples, and looks for another behind the rest. */
#define UNIT ((size_t)32 << 20)

/*
 * One behind the other, and from the beginning again: what was freed in the meantime is used
 * again, and what is still there makes the driver choose for once.
 */
static _Atomic CUdeviceptr next = FIRST;

static CUdeviceptr aligned(CUdeviceptr at, size_t alignment)
{
	return (at + alignment - 1) & -(CUdeviceptr)alignment;
}

static CUdeviceptr take(size_t bytes, size_t alignment)
{
	CUdeviceptr seen = atomic_load(&next), at;

	if (alignment < UNIT)
		alignment = UNIT;
	if (alignment > FIRST || bytes > (LAST - FIRST) / 4)
		return 0;
	do {
		at = aligned(seen, alignment);
		if (at + bytes > LAST)
			at = aligned(FIRST, alignment);
		if (at + bytes > LAST)
			return 0;
	} while (!atomic_compare_exchange_weak(&next, &seen, at + bytes));
	return at;
}

CUresult address_reserve(CUdeviceptr *base, size_t bytes, size_t alignment)
{
	CUdeviceptr hint = alignment & (alignment - 1) ? 0 : take(bytes, alignment);

	/* A GPU may not reach that far. */
	if (hint && driver.cuMemAddressReserve(base, bytes, alignment, hint, 0) == CUDA_SUCCESS)
		return CUDA_SUCCESS;
	return driver.cuMemAddressReserve(base, bytes, alignment, 0, 0);
}
