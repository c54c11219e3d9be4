// SPDX-License-Identifier: GPL-2.0-or-later
#include "address.h"

#include <stdatomic.h>

/* Far from where Linux puts programs, libraries, heaps and stacks. */
#define FIRST ((CUdeviceptr)0x4b1700000000)
#define LAST ((CUdeviceptr)0x500000000000)

/* Below, the upper half of an address is a number that sizes and counts often are. */
#define SMALL ((CUdeviceptr)0x1000 << 32)

/* The driver (580.159.04) looks for the first of its multiples at or behind the place asked for. */
#define UNIT ((size_t)32 << 20)

/* How often to ask, and how much to leave out where something lies. */
#define TRIES 4
#define SKIP ((CUdeviceptr)256 << 20)

/*
 * One behind the other, and from the beginning again: what was freed in the meantime is used
 * again, and what is still there is passed over.
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
	int tries = alignment & (alignment - 1) ? 0 : TRIES;

	for (int n = 0; n < tries; n++) {
		CUdeviceptr hint = take(bytes, alignment);

		/* A GPU may not reach that far. */
		if (!hint || driver.cuMemAddressReserve(base, bytes, alignment, hint, 0))
			break;
		/*
		 * Of the process's addresses that it has already taken and not given to anybody,
		 * hundreds of MiB under PyTorch, it makes use first, whatever is asked for.
		 */
		if (*base >= SMALL)
			return CUDA_SUCCESS;
		driver.cuMemAddressFree(*base, bytes);
		atomic_fetch_add(&next, SKIP << n);
	}
	return driver.cuMemAddressReserve(base, bytes, alignment, 0, 0);
}
