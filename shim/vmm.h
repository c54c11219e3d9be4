/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory that the program maps itself (cuMemCreate, cuMemMap). What it creates takes no
 * VRAM but a promise; where it is mapped decides what becomes of it:
 *
 * - In a reservation of a chunk or more it is paged. The reservation is cut into chunks,
 *   not the memory: allocators map pieces side by side, which tensors then run across, and
 *   20 MiB would not be whole chunks. A chunk in which anything is mapped is there as a
 *   whole; what lies between is nobody's. Reservations are made up to whole chunks.
 * - Where smaller memory was mapped first, in smaller reservations, and in those that were
 *   made before there was a daemon to work with, it is the driver's.
 *
 * vmm.c has the mappings, vmm_create.c what is to be mapped, vmm_region.c the reservations,
 * vmm_piece.c what is paged in them, vmm_direct.c what is the driver's, vmm_account.c the promises.
 * One lock guards all of it; it is taken before any of a device's.
 */
#ifndef GREENBOOST_VMM_H
#define GREENBOOST_VMM_H

#include "residency.h"

/* Sizes and addresses are multiples of it, on every device so far. */
#define VMM_UNIT ((size_t)2 << 20)

/* What one cuMemCreate made: lives while it has handles or is mapped. */
struct creation {
	CUmemGenericAllocationHandle handle; /* ours */
	struct device *device;
	CUmemAllocationProp prop;
	size_t bytes;
	uint32_t held; /* handles that the program has */
	bool promised; /* counted in the account */
	bool backed; /* by memory of the driver's: */
	CUmemGenericAllocationHandle real;
	bool used; /* which may hold something by now */
	uint32_t mappings; /* of that */
	struct piece *piece; /* where its bytes are, if it is paged and has any */
};

/* A creation in a region. */
struct piece {
	struct region *region;
	struct creation *creation;
	uint64_t offset, bytes;
	bool mapped; /* else it is only kept there: the program holds it, and may map it again */
	int access; /* CU_MEM_ACCESS_FLAGS_PROT_*, of its device */
};

/* What there is to know of a chunk of a region. */
struct grain {
	uint32_t pieces; /* that lie in it, at least in part */
	uint32_t grant; /* plus one: the first of those that the daemon admitted it with */
	uint32_t granted, live; /* of a first one: how many there are, and in use */
};

/* A reservation of the program's. */
struct region {
	CUdeviceptr base;
	uint64_t bytes; /* as the program asked */
	uint64_t reserved;
	bool direct; /* the driver's memory is mapped in it */
	bool over; /* the program has no use for it; it goes with its last piece */
	unsigned char *fixed; /* by chunk: what is there never leaves; NULL: nothing such was */
	/* While something is paged in it: */
	struct device *device;
	struct allocation *allocation;
	struct grain *grains;
	struct piece **pieces; /* sorted */
	uint32_t count, room;
};

/* vmm_account.c; each in device->allocate */

/* Promise so many bytes that are mapped nowhere yet. */
CUresult account_promise(struct device *device, uint64_t bytes);
void account_release(struct device *device, uint64_t bytes);

/* Have the daemon admit chunks, each part as one, in place of what was promised; bytes: 0 if
 * nothing was. */
CUresult account_turn(struct device *device, uint64_t bytes, const struct held_allocation *chunks,
		      uint32_t parts);

/* vmm_region.c */

/* The program has reserved it. Without memory for the table nothing is paged there. */
void region_add(CUdeviceptr base, uint64_t bytes, uint64_t reserved);
/* Enter one in the table. NULL: no memory. */
struct region *region_new(struct region fresh);
/* Forget it, and give its addresses back; nothing is in it. */
CUresult region_remove(struct region *region);

/* The region around an address, NULL if there is none. */
struct region *region_at(CUdeviceptr address);

/* The piece around an address, mapped or not, NULL if there is none. */
struct piece *region_piece(const struct region *region, CUdeviceptr address);

/* The first piece that lies in the range at least in part, NULL if none does. */
struct piece *region_overlap(const struct region *region, CUdeviceptr address, uint64_t bytes);

/* The pieces from address on that end where the range does and leave out nothing of it. NULL: they
 * do not, or one is not mapped. */
struct piece **region_range(const struct region *region, CUdeviceptr address, uint64_t bytes,
			    uint32_t *count);

/* The number of pieces that begin at or below the offset. */
uint32_t region_rank(const struct region *region, uint64_t offset);

static inline uint64_t region_chunks(const struct region *region)
{
	return region->reserved / region->device->chunk;
}

/* Cut it into chunks of the device's. In device->allocate. */
CUresult region_begin(struct region *region, struct device *device);
/* Nothing is in it any more. In device->allocate. */
void region_end(struct region *region);

/* If its device was reset, what is in it goes. */
void region_clear(struct region *region);

/* In a child of fork(). */
void regions_forget(void);

/* vmm_piece.c */

/*
 * Put a creation there, where no piece is; if its bytes were kept elsewhere, they come
 * along. CUDA_ERROR_NOT_FOUND: there are no chunks left to cut the region into.
 */
CUresult piece_map(struct region *region, struct creation *creation, uint64_t offset);

/* The program does not use it there any more, but holds it. */
void piece_keep(struct piece *piece);

/* Move what is kept to addresses of its own: the program wants these for something else. */
CUresult piece_displace(struct piece *piece);

/* Nobody will use it: its bytes go. The device was waited for. */
void piece_end(struct piece *piece);

/* vmm_direct.c */

/*
 * Have the driver make its memory. must: it cannot be paged.
 * CUDA_ERROR_OUT_OF_MEMORY: there is no VRAM for it beside the slots.
 */
CUresult direct_back(struct creation *creation, bool must);
/* Give that back, of which nothing is mapped. */
CUresult direct_end(struct creation *creation);

CUresult direct_map(struct creation *creation, CUdeviceptr address);
/* Also of what is none of ours. */
CUresult direct_unmap(CUdeviceptr address, size_t bytes);

/* What is mapped around an address, NULL if it is none of ours. */
struct creation *direct_at(CUdeviceptr address);

/* In a child of fork(). */
void direct_forget(void);

/* vmm_create.c */

bool handle_is_ours(CUmemGenericAllocationHandle handle);

/* What a handle is of that the program has; NULL: it has none such. */
struct creation *creation_of(CUmemGenericAllocationHandle handle);

/* It is to be the driver's, having been promised. */
CUresult creation_back(struct creation *creation);

/* Its device was not reset since. */
bool creation_alive(const struct creation *creation);

/* It has neither handles nor mappings. */
void creation_free(struct creation *creation);

/* In a child of fork(). */
void creations_forget(void);

/* vmm.c */

extern pthread_mutex_t vmm_lock; /* guards all of it */

/* CUDA_ERROR_NOT_SUPPORTED, said. */
CUresult vmm_refuse(const char *what);

/* The mapping around an address, as pointers are asked for it. False: it is none of ours. */
bool vmm_mapping(CUdeviceptr address, CUdeviceptr *base, size_t *bytes, int *access);

/* room.c: cuMemCreate of the driver, for which slots give way. */
CUresult room_create(CUmemGenericAllocationHandle *handle, size_t size,
		     const CUmemAllocationProp *prop, unsigned long long flags);

#endif
