/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the pager thread is made of: pager.c decides what is next, vram.c moves
 * chunks between VRAM and RAM, in_place.c has them used in RAM, lower.c makes
 * room there, in arenas that lower_arenas.c asks for and gives back, and lower_transfer.c
 * has the daemon read and write T3.
 *
 * Every function is called by that thread, with the device's lock held, and
 * returns with it held; where one calls the driver or the daemon it lets go of
 * the lock, and what was read before is stale after. Chunks in the states RISING
 * and SINKING are nobody else's, and FETCHING and SPILLING ones wait for the
 * client's thread.
 */
#ifndef GREENBOOST_PAGER_H
#define GREENBOOST_PAGER_H

#include "residency.h"

/* How soon a pager looks again when what is to leave is still in use. */
#define AGAIN_NS 100000

static inline void let_go(struct device *device)
{
	pthread_mutex_unlock(&device->lock);
}

static inline void take_back(struct device *device)
{
	pthread_mutex_lock(&device->lock);
}

/* Has T3 a copy of it that may become the only one? */
static inline bool extent_holds(const struct device *device, const struct chunk *chunk)
{
	return chunk->extent && !device->doubt;
}

/* pager.c */
void pager_set_state(struct device *device, uint32_t index, enum chunk_state state);

/* One thing of what is to be done, the most urgent, or sleep until there is something. */
void pager_turn(struct device *device);

/* What each thread that calls the driver does first. */
CUresult pager_thread_begins(struct device *device, const char *name);

/* The driver failed where it must not: nothing can be promised any more. */
void pager_stop(struct device *device, const char *what, CUresult error);

/* lower.c */
uint32_t lower_ram_slots(struct device *device); /* in arenas that stay */

/* A free RAM slot without moving anything: a copy of what is in VRAM may be given up for it. */
struct ram_place lower_take_ram(struct device *device);

/* RAM slots that lower_take_ram() could give out. */
uint32_t lower_ram_available(struct device *device);

/* Free the RAM slot with the copy of a chunk that is in VRAM. */
void lower_forget_copy(struct device *device, uint32_t index);

/*
 * A free RAM slot: from the arenas there are, from a new one, or by spilling.
 * NO_RAM: no tier has room.
 */
struct ram_place lower_make_ram(struct device *device);

/*
 * T3 is full, but some of what it has is also in VRAM or RAM: make room by giving up
 * the one or the other. What is wanted now stays where it is. False: there is nothing
 * of the kind.
 */
bool lower_give_up_extents(struct device *device);

/* lower_transfer.c */

/* Ask the daemon for an absent chunk of T3; place is where it goes. */
void lower_start_fetch(struct device *device, uint32_t index, struct ram_place place);

/* Have a chunk of RAM go on in T3 alone: at once, if that has its bytes already. */
void lower_spill(struct device *device, uint32_t index);

/* Only if it has. */
bool lower_spill_clean(struct device *device, uint32_t index);

/* The same for one whose arena leaves, which is SPILLING already. */
void lower_depart(struct device *device, uint32_t index);

/* T3's copy of the chunk, if there is one, is no longer right. Lets go of the lock. */
void lower_drop_extent(struct device *device, uint32_t index);

/* lower_arenas.c */
void lower_show_ram(struct device *device); /* write the figures of RAM to the state page */
bool lower_leaving(const struct device *device, uint32_t index); /* Does its arena? */

/* Another arena, when the daemon has one. */
void lower_ask_for_arena(struct device *device);

/*
 * The same before it is needed. Making an arena takes as long as filling it: so it is asked
 * for when the ones there are become full, as long as the chunks there are fill VRAM and the
 * last arena but one: memory is mostly allocated bit by bit. Not while the daemon wants some
 * back.
 */
void lower_ask_early(struct device *device);

/* Another arena, now. False: there is none to be had. */
bool lower_more_ram(struct device *device);

/*
 * One step of giving back what the daemon wants: all recalled arenas are emptied
 * together, and each is answered when it is empty. False: nothing to be done
 * until something that is under way is over.
 */
bool lower_serve_recalls(struct device *device);

/*
 * The threads that open arenas and close them: both take long. Nothing that moves has to
 * wait for a closing, and as a rule not for an opening, which is begun early.
 */
void *lower_opener(void *device);
void *lower_closer(void *device);

/* What the opener does with an answer of the daemon's. */
void lower_open(struct device *device);

/* vram.c */

/*
 * Bring in an absent chunk whose bytes are in RAM, or that has none yet; ahead:
 * nobody waits for it. False: not possible now.
 */
bool vram_rise(struct device *device, uint32_t index, bool ahead);

/* Ask the driver which launches are over, from the oldest on, and whether the last copy up is. */
void vram_see_what_is_over(struct device *device);

/*
 * Wait until nothing uses the chunk, which is SINKING, and find out whether it is the same as
 * when it was below last; address: where to read it; sum: the checksum of what it is.
 */
CUresult vram_settle(struct device *device, struct chunk *chunk, CUdeviceptr address,
		     struct checksum *sum, bool *same);

/* Are so many copies to VRAM, or more, under way? In the lock, which it lets go of. */
bool vram_bus_has(struct device *device, uint32_t copies);

/* Was one when vram_see_what_is_over() looked last, or has one begun since? */
bool vram_bus_runs(const struct device *device);

/* Does some stream wait for a value? What is used behind that wait is not over before. */
bool vram_awaiting(struct device *device);

/* Sleep until something may be over: it is not told. */
void vram_look_again(struct device *device);

/*
 * Is anything kept in VRAM only until a launch or copy has been made, but for what `but` (or NULL)
 * names? Who makes one has all it needs and waits for nothing here, so that is over soon.
 */
bool vram_held_for_a_moment(const struct device *device, const struct hold *but);

/* One slot less, as direct allocations take VRAM from the slots. */
void vram_give_up_slot(struct device *device);

#endif
