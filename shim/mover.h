/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What moves: VRAM slots and their mappings, arenas of RAM slots, and copies
 * between the two. It knows places, not chunks; which chunk goes where is the
 * business of residency. Nothing here takes a lock: each function says who may
 * call it.
 */
#ifndef GREENBOOST_MOVER_H
#define GREENBOOST_MOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "driver.h"
#include "ticket.h"
#include "timing.h"

#define NO_SLOT UINT32_MAX
#define MAX_ARENAS 1024

/* A chunk-sized piece of VRAM, always mapped at its alias, where copies run. */
struct vram_slot {
	CUmemGenericAllocationHandle handle;
	struct ticket *busy; /* what a new tenant must wait for: the write-back of the last one */
	uint32_t chunk; /* NO_SLOT: free */
	bool exists;
};

/* A chunk-sized piece of an arena. */
struct ram_slot {
	struct ticket
		*busy; /* what a new tenant must wait for: the copy that still reads or writes it */
	bool used;
};

/* One memfd (or DMA-BUF) of the daemon's, mapped and registered with the device. */
struct arena {
	uint64_t id; /* 0: none here */
	unsigned char *base;
	uint32_t slots;
	uint32_t used;
	int fd;
	bool leaving; /* recalled: takes no new tenants */
	int stays; /* why it cannot leave, errno value */
	struct ram_slot *slot;
};

/* A RAM slot by name; arena is an index into mover.arenas. */
struct ram_place {
	uint16_t arena;
	uint16_t slot;
};
#define NO_RAM ((struct ram_place){ UINT16_MAX, UINT16_MAX })

static inline bool ram_none(struct ram_place place)
{
	return place.arena == UINT16_MAX;
}

struct mover {
	CUdevice device;
	CUcontext context;
	size_t chunk; /* bytes */
	CUstream up, down; /* T2 to T1, T1 to T2 */
	CUstream join; /* waits for others, and runs nothing */
	struct timing timing; /* of copies, where that is asked for */
	CUdeviceptr alias; /* slot n is at alias + n * chunk */
	uint32_t slots; /* entries of vram; how many of them exist changes */
	_Atomic uint32_t slots_existing; /* changes with the device unlocked, while one slot is made
					    or given up */
	struct vram_slot *vram;
	struct arena *arenas;
	uint32_t arena_count; /* entries ever used */
};

/* The context must be current. slots: the most there will ever be. */
CUresult mover_init(struct mover *mover, CUdevice device, CUcontext context, size_t chunk,
		    uint32_t slots);

/* Make or give up the memory of a slot. The pager's only. */
CUresult mover_create_slot(struct mover *mover, uint32_t slot);
CUresult mover_destroy_slot(struct mover *mover, uint32_t slot);

/* Addresses for so many chunks, at which nothing is. CUDA_ERROR_OUT_OF_MEMORY: there are none. */
CUresult mover_reserve(struct mover *mover, CUdeviceptr *base, uint64_t chunks);
/* All chunks have been unmapped. */
void mover_unreserve(struct mover *mover, CUdeviceptr base, uint64_t chunks);

/* Put a slot at the application's address, or take it away. The pager's only. */
CUresult mover_map(struct mover *mover, CUdeviceptr address, uint32_t slot);
CUresult mover_unmap(struct mover *mover, CUdeviceptr address);

/*
 * The same with a RAM slot, which is then read in place.
 * Nothing may use the slot. Taking it away waits for whatever runs on the device.
 */
CUresult mover_map_ram(struct mover *mover, CUdeviceptr address, struct ram_place place);
CUresult mover_unmap_ram(struct mover *mover, CUdeviceptr address);

/*
 * Start the copy of a RAM slot into a VRAM slot, or back, after what either is
 * busy with. Returns the ticket of its end, NULL on error. time: NULL, or where to
 * put what takes its time, which the caller gives back to mover.timing.
 */
struct ticket *mover_copy_up(struct mover *mover, struct ram_place from, uint32_t to,
			     struct span_of_time *time);
struct ticket *mover_copy_down(struct mover *mover, uint32_t from, struct ram_place to,
			       struct span_of_time *time);

/* In a child of fork(), which has no use for them: close the arenas' files. */
void mover_forget(struct mover *mover);

/* Map an arena and register it, which takes long; fd is consumed. In no lock. */
bool mover_open_arena(struct mover *mover, uint64_t id, int fd, size_t bytes, struct arena *arena);

/* Use it from now on. False: there are too many. In the device's lock. */
bool mover_add_arena(struct mover *mover, const struct arena *arena);

/* Forget an empty arena, which is the caller's then, to be closed. In the device's lock. */
struct arena mover_remove_arena(struct mover *mover, uint32_t index);

/* Unregister and unmap it, which may wait for whatever runs on the device. In no lock. */
void mover_close_arena(struct mover *mover, struct arena *arena);

/* A free slot of any arena that stays, NO_RAM if there is none. In the device's lock. */
struct ram_place mover_take_ram(struct mover *mover);

/*
 * A copy of the slot has been started; busy (consumed) is its end. It waited for the
 * one before on the device, so it speaks for both. In the device's lock.
 */
void mover_use_ram(struct mover *mover, struct ram_place place, struct ticket *busy);

/* Give a slot back, also while a copy still uses it: see there. In the device's lock. */
void mover_put_ram(struct mover *mover, struct ram_place place);

unsigned char *mover_ram(struct mover *mover, struct ram_place place);
struct ram_slot *mover_ram_slot(struct mover *mover, struct ram_place place);

/* Slots in arenas that stay, and how many of them are free. In the device's lock. */
void mover_count_ram(const struct mover *mover, uint32_t *slots, uint32_t *available);

#endif
