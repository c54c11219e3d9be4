// SPDX-License-Identifier: GPL-2.0-or-later
#include "address.h"

#include <stdatomic.h>

/* Far from where Linux puts programs, libraries, heaps and stacks. */
#define FIRST ((CUdeviceptr)0x4b1700000000)
#define LAST ((CUdeviceptr)0x500000000000)

/* The driver heeds a place only at its multiples, and looks for another behind the rest. */
#define UNIT ((size_t)32 << 20)

/*
 * How often to ask, and how much to leave out where something lies: on an H100 the second and
 * third allocation of PyTorch programs were not granted, of all that followed every one.
 */
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
	int tries = alignment & (alignment - 1) || bytes < ADDRESS_LEAST ? 0 : TRIES;

	for (int n = 0; n < tries; n++) {
		CUdeviceptr hint = take(bytes, alignment);

		/* A GPU may not reach that far. */
		if (!hint || driver.cuMemAddressReserve(base, bytes, alignment, hint, 0))
			break;
		if (*base >= FIRST && *base < LAST)
			return CUDA_SUCCESS;
		driver.cuMemAddressFree(*base, bytes);
		atomic_fetch_add(&next, SKIP << n);
	}
	return driver.cuMemAddressReserve(base, bytes, alignment, 0, 0);
}
