/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The address space that the devices and the host share: which ranges are
 * reserved for device memory, and what stands at each address.
 *
 * A reservation is inaccessible until something is put in it, so a stale device
 * address faults. A span is memory that the devices know: a mapping of
 * cuMemCreate memory, a cuMemAlloc allocation, or registered host memory.
 */
#ifndef SOFTCUDA_SPACE_H
#define SOFTCUDA_SPACE_H

#include "cuda_abi.h"
#include "interval.h"
#include "settings.h"

enum span_kind { SPAN_MAPPING, SPAN_ALLOC, SPAN_HOST };

struct span {
	struct interval at;
	enum span_kind kind;
	CUcontext context; /* its owner; NULL for mappings */
	uint64_t id; /* never used twice */
	int device;
	unsigned char access[MAX_DEVICES]; /* CU_MEM_ACCESS_FLAGS_*, of a mapping */
	unsigned int host_flags; /* as given to cuMemHostAlloc or cuMemHostRegister */
	bool host_allocated; /* by cuMemHostAlloc: the pages are ours */
	bool managed; /* by cuMemAllocManaged; memory of the device all the same */
	bool freeing; /* somebody is about to free it; nobody else may */
	CUmemGenericAllocationHandle handle; /* of a mapping */
	struct vram_block *block; /* NULL for host memory and small allocations */
	struct small_block *small; /* where a small allocation was carved from */
};

struct reservation {
	struct interval at;
	bool ours; /* outside the window: to be unmapped when freed */
	bool user; /* made by cuMemAddressReserve */
};

/* What a range of addresses is, as a whole. */
enum range_kind {
	RANGE_PAGEABLE, /* nothing that the devices know: the host's own memory */
	RANGE_DEVICE, /* accessible device memory throughout */
	RANGE_HOST, /* registered host memory throughout */
	RANGE_BROKEN, /* unmapped device addresses, or a border between kinds within it */
};

CUresult space_init(void);

/*
 * Guards all spans and reservations. Copies look ranges up far more often than
 * anything changes.
 */
void space_read_lock(void);
void space_write_lock(void);
void space_unlock(void);

/* What follows is called with the lock held, for writing where it changes anything. */

/*
 * Reserves bytes at a multiple of alignment: at hint where that is free, else
 * anywhere. NULL: no room.
 */
struct reservation *space_reserve(size_t bytes, size_t alignment, uintptr_t hint);
void space_release(struct reservation *reservation);

/* The reservation that holds all of the range, or NULL. */
struct reservation *space_reservation(uintptr_t start, uintptr_t end);

/* Makes a range of a reservation inaccessible again. */
void space_close(uintptr_t start, uintptr_t end);

/* A zeroed span with an id, not yet anywhere; NULL when there is no memory. */
struct span *span_new(enum span_kind kind, uintptr_t start, size_t bytes);
bool space_insert(struct span *span);
void space_remove(struct span *span);

struct span *space_at(uintptr_t address);

/* The access that any device has to a span: CU_MEM_ACCESS_FLAGS_*. */
int span_access(const struct span *span);

bool space_overlaps(uintptr_t start, uintptr_t end);

/* The first span that ends after address, or NULL: from one's end on, the next. */
struct span *space_next(uintptr_t address);

/* Takes the lock itself. */
enum range_kind space_classify(uintptr_t start, size_t bytes);

/*
 * May work of this device's contexts name the range? All but mappings that it was given no access
 * to. Takes the lock itself.
 */
bool space_grants(uintptr_t start, size_t bytes, CUdevice device);

#endif
