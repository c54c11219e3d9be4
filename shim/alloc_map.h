/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The application's allocations by address, and the objects inside them. No
 * CUDA calls, no locks: the device's lock guards it.
 */
#ifndef GREENBOOST_ALLOC_MAP_H
#define GREENBOOST_ALLOC_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Bytes that host copies and memsets wrote, from where the first of them began.
 * Once a launch has named that address too, an object starts there; piecewise
 * uploads (copied to, never named) and views (named, never copied to) do not cut
 * objects. A write that begins inside an older one widens it and starts nothing:
 * it may have filled a part of a tensor that was filled whole before.
 */
struct start {
	uint64_t offset, reach; /* [offset, reach); those of two starts never overlap */
	bool named;
	bool doubtful; /* more than one write made it: it may be several objects */
};

/* Consecutive bytes of a sparse allocation, [begin, end). */
struct alloc_run {
	uint64_t begin, end;
};

struct allocation {
	uint64_t base;
	uint64_t bytes; /* asked for; sparse: up to the end of what is or was there last */
	uint32_t first; /* its first chunk; unused while direct */
	uint32_t chunks; /* 0: direct, the driver's own */
	uint32_t indexes; /* set aside from first on, at least chunks */
	bool sparse; /* only its runs are the program's memory: addresses that it maps itself */
	struct alloc_run *runs; /* sorted, apart */
	uint32_t run_count, run_room;
	uint32_t pieces; /* that the runs were put together of: there are no more runs than that */
	uint32_t number; /* how many were added to the map before it */
	bool leaving; /* being freed */
	uint32_t
		guests; /* launches that name it, perhaps by accident, and hold nothing of it yet */
	struct start *starts; /* sorted */
	uint32_t start_count, start_room;
	uint64_t *names; /* offsets that launches named where no end was known, sorted */
	uint32_t name_count, name_room;
	uint64_t reach; /* of an allocator's: how far two objects of a launch reached, bytes */
};

struct alloc_map {
	struct allocation **sorted;
	uint32_t count, room;
	uint32_t paged; /* how many are paged */
	uint32_t added; /* since the beginning */
	uint64_t low, high; /* paged addresses lie in [low, high) */
};

/* Returns NULL without memory. bytes > 0; chunks 0 for a direct one. */
struct allocation *alloc_map_add(struct alloc_map *map, uint64_t base, uint64_t bytes,
				 uint32_t first, uint32_t chunks);
void alloc_map_remove(struct alloc_map *map, struct allocation *allocation);

/*
 * A sparse one, of which nothing is there yet, with room for so many chunks. What it
 * has changes under the eyes of those who use another part of it, so neither it nor
 * offsets in it move.
 */
struct allocation *alloc_map_add_sparse(struct alloc_map *map, uint64_t base, uint32_t first,
					uint32_t indexes);

/* How far a sparse allocation reaches. */
void alloc_map_extend(struct alloc_map *map, struct allocation *allocation, uint64_t bytes,
		      uint32_t chunks);

/* Bytes that come, a piece at a time, and go, as such pieces. False: no memory. */
bool alloc_include(struct allocation *allocation, uint64_t begin, uint64_t end);
void alloc_exclude(struct allocation *allocation, uint64_t begin, uint64_t end);

/* The consecutive bytes around an offset: all of it, or a sparse one's run. False: there are none.
 */
bool alloc_run_at(const struct allocation *allocation, uint64_t offset, struct alloc_run *run);

/* Are these consecutive bytes of it? */
bool alloc_holds(const struct allocation *allocation, uint64_t offset, uint64_t bytes);

/* The allocation that holds the address, or NULL. */
struct allocation *alloc_map_find(const struct alloc_map *map, uint64_t address);

/* The first index of so many consecutive chunks that no allocation has, UINT32_MAX if there is
 * none. */
uint32_t alloc_map_room(const struct alloc_map *map, uint32_t chunks, uint32_t limit);

/* A copy or memset wrote [offset, offset + bytes): it begins an object or belongs to older ones. */
void alloc_note_write(struct allocation *allocation, uint64_t offset, uint64_t bytes);

/*
 * A launch named this offset: which bytes does that mean? [*begin, *end) of the
 * allocation, and rather too many than too few. *known: a later object start is
 * known, so that is certain; else it is the widest that can be meant.
 */
void alloc_object(struct allocation *allocation, uint64_t offset, uint64_t *begin, uint64_t *end,
		  bool *known);

/*
 * A launch named this offset, and alloc_object() does not know the end: where it probably is. At
 * the next offset that was named so, if that is no view of this object; else where what copies
 * filled ends; else, where nothing but its beginning was ever named, at the end of the allocation,
 * of a sparse one's run. 0: that cannot be told.
 */
uint64_t alloc_probable_end(struct allocation *allocation, uint64_t offset);

/* Where what copies filled of the object at this offset ends: so far it is certain to reach. */
uint64_t alloc_filled(const struct allocation *allocation, uint64_t offset);

#endif
