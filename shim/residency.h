/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where every chunk of a device is, and the promise that what a launch or copy
 * names stays in VRAM until it has run. One struct device per GPU; its lock is
 * never held over a driver call, so a launch never waits for the driver's.
 *
 * A chunk moves only by the hand of the device's pager thread (pager.c):
 *
 *           rise                   sink
 *   ABSENT -----> RISING -> RESIDENT -----> SINKING -> ABSENT (home T2)
 *     | fetch (T3 to T2, by the daemon): FETCHING -> ABSENT
 *     | spill (T2 to T3, by the daemon): SPILLING -> ABSENT
 *     | map (to be used in place, in T2): RISING -> MAPPED -> SINKING -> ABSENT; where
 *     |     all is (device->maps), it stays
 */
#ifndef GREENBOOST_RESIDENCY_H
#define GREENBOOST_RESIDENCY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "alloc_map.h"
#include "checksum.h"
#include "client.h"
#include "grace.h"
#include "guess.h"
#include "mover.h"
#include "pins.h"
#include "predict.h"
#include "sparse.h"
#include "ticket.h"
#include "wire.h"

enum chunk_state { ABSENT, FETCHING, SPILLING, RISING, RESIDENT, SINKING, MAPPED };
enum chunk_home { HOME_EMPTY, HOME_T1, HOME_T2, HOME_T3, HOME_LOST };

#define CHUNK_USES 4

/* 2 TiB of 2 MiB chunks; the tables are mapped, not touched, until used. */
#define MAX_CHUNKS (1u << 20)

/* What a kernel reads and writes, and one each way in and out: without them nothing moves. */
#define LEAST_SLOTS 4

struct chunk {
	CUdeviceptr address;
	uint8_t state; /* enum chunk_state */
	uint8_t home; /* enum chunk_home: where its bytes are */
	bool fixed; /* a graph copies or sets it, or may be launched by the device, or it is pinned:
		       never leaves */
	bool pinned;
	bool sticky; /* its address was copied to the device: leaves when nothing else can */
	uint8_t grace; /* launches, over or not, for which it stays (grace.h) */
	uint16_t holds; /* launches and copies being prepared that name it */
	uint32_t slot; /* its VRAM slot, NO_SLOT if none */
	struct ram_place ram; /* its RAM slot; while it is in VRAM, that of a copy; MAPPED: there it
				 is used */
	uint32_t tag; /* of the last launch that named it, but for one that only likely reads little
			 of it */
	struct guess guess;
	bool extent; /* T3 has a copy */
	bool summed; /* sum is that of its bytes below VRAM: a copy is right as long as VRAM's is
			the same */
	struct checksum sum;
	struct ticket *arrival; /* its bytes are in VRAM once this is done */
	struct ticket *uses[CHUNK_USES]; /* it may leave once these are done, one a stream */
};

/* What one launch or copy names. */
struct span {
	struct allocation *allocation;
	uint64_t begin, end; /* bytes of the allocation */
	bool open; /* a guess: as much as fits will do, from where it was named */
	uint64_t named; /* what a call gave, in [begin, end) */
	uint64_t least; /* it may end here already, an open one even probably; 0: that is not known
			 */
	bool overwritten; /* chunks wholly inside need not be fetched */
	bool guest; /* counted in the allocation's guests, until residency_hold() has returned */
};

/* Is it where a kernel can use it? */
static inline bool chunk_usable(const struct chunk *chunk)
{
	return chunk->state == RESIDENT || chunk->state == MAPPED;
}

/* Where what a hold names is to be. */
enum hold_where {
	HOLD_APART, /* a copy: RAM is as good where no span runs across a border of chunks */
	HOLD_VRAM, /* it stays for good, or is a graph's */
	HOLD_EXCESS, /* a kernel: RAM for what VRAM has no room for */
};

/*
 * What of a hold is given up where not all that its spans may mean has room: nothing; the guesses
 * in an allocation that is an allocator's, beyond where they probably end; those in others as
 * well; the guesses; also what only the next known object ends, down to what is certain of it.
 */
enum cut { CUT_NOTHING, CUT_POOLS, CUT_UNLIKELY, CUT_GUESSES, CUT_DOUBTFUL };

#define HOLD_INLINE 256

/* Chunks that must stay until released. */
struct hold {
	uint32_t *chunks;
	uint32_t count, room;
	uint32_t in_place[HOLD_INLINE];
	bool guesses; /* some of them are named by a guess alone (guess.h): */
	bool *guessed, guessed_in_place[HOLD_INLINE]; /* these */
	struct ticket *arrivals[4]; /* the latest of each stream that chunks arrive by */
	uint32_t arrival_count;
	uint32_t absent,
		arriving; /* of chunks: waited for on the host, to be waited for on the device */
	enum hold_where where; /* set by the caller */
	bool exceeds; /* not all of it fits VRAM */
	bool pressed; /* RAM has no room for that */
	bool ram; /* a chunk that is MAPPED is as good as a RESIDENT one */
	enum cut cut, cut_least; /* what was; and at least has to be */
	bool again; /* RAM was asked for in vain: what there is has to do */
	struct reading little; /* is used in RAM, as the launch reads little of it */
	struct reading timed; /* how long the launch takes says whether it does */
	bool alone; /* see struct sample */
	uint32_t tag; /* set by the caller: what kind of launch it is, 0 for a copy */
	bool few; /* set by the caller: a kernel of so few threads that it may write pointers to
		     what it names, for others */
};

/* Launches whose end the pager has not seen yet; of more the oldest are taken for over. */
#define RECENT_MOST 4096
/* Copies to VRAM that are remembered; of a ring that is counted through, so a power of two. */
#define RISING_MOST 64

/* A paged allocation that a stream has freed; it ends when the stream gets there. */
struct freed {
	struct allocation *allocation;
	struct ticket *ticket; /* NULL: it is there */
	struct freed *next;
};

/* Chunks of an allocation that end, because all of it does (whole) or that part of it. */
struct ending {
	struct allocation *allocation;
	uint32_t first, chunks;
	bool whole;
};

/* Streams that wait for a value, as far as is remembered. */
#define AWAITS_MOST 8

struct recall {
	uint64_t id, arena;
};

/* An arena that was emptied for a recall. */
struct closing {
	struct arena arena;
	uint64_t recall; /* to be answered */
	struct closing *next;
};

struct device {
	CUdevice ordinal;
	CUcontext context;
	size_t chunk; /* bytes */
	bool maps; /* what VRAM has no room for is read in place in RAM: nothing comes and goes */
	_Atomic uint64_t limit; /* VRAM that allocations may take, bytes; written in `allocate` */
	atomic_bool ready; /* VRAM slots and the pager are there */
	bool unusable; /* making them failed; guarded by the lock of device.c */
	struct client client;
	struct reply terms; /* the daemon's answer to hello */
	struct state_header *state;
	unsigned char *state_map;

	pthread_mutex_t allocate; /* one allocation or end of one at a time; taken before lock */
	struct freed *freed; /* the oldest first; guarded by `allocate` */
	pthread_mutex_t lock; /* guards what follows; no driver call and no request is made in it */
	pthread_cond_t changed; /* a chunk or slot changed state */
	pthread_cond_t work; /* the pager has something to do */
	struct alloc_map map;
	struct chunk *chunks;
	struct predictor predictor;
	uint32_t chunk_limit; /* entries of chunks */
	uint64_t committed; /* chunks of all allocations */
	uint64_t direct; /* bytes of direct allocations */
	uint32_t slots_allowed; /* VRAM slots after direct allocations have had theirs */
	atomic_uint slots_announced; /* what the daemon counts on */
	uint32_t fixed; /* chunks that never leave */
	struct pins pins;
	uint32_t pinned; /* of the fixed ones those that a pin names */
	struct hold *wanted; /* of the one launch or copy that waits for chunks */
	CUresult failure; /* why it cannot be served; CUDA_SUCCESS: it can */
	struct ending *ending; /* to be taken apart by the pager */
	struct recall recalls[MAX_ARENAS]; /* not yet answered, the oldest first */
	uint32_t recall_count;
	struct closing *closings; /* for the closer, the oldest first */
	pthread_cond_t to_close; /* there is one */
	uint32_t fetches, spills; /* under way */
	uint32_t departures; /* spills under way that empty a recalled arena */
	bool doubt; /* there is no daemon, and what T3 has is not known: its copies are not relied
		       on */
	bool untold; /* nor has the next one been told what of T3's is counted on */
	bool relying; /* a chunk is leaving VRAM that has no other copy */
	int spill_error; /* of the last spill that failed, errno value */
	uint32_t mapped; /* chunks that are used in place; written in the lock */
	bool excess_said; /* that a launch names more than VRAM holds */
	uint32_t slots_used; /* VRAM slots with a chunk in them */
	uint32_t copies; /* RAM slots with a copy of a chunk that is in VRAM */
	uint32_t copy_hand; /* the VRAM slot whose chunk may lose its copy next */
	uint32_t arena_refusals; /* spills to go before asking the daemon for an arena again */
	bool arena_asked; /* for one, which is not there yet */
	bool arena_awaited; /* the pager does nothing before it is, except give others back */
	bool arena_came; /* the last time it was */
	bool arena_answered; /* for the opener, with this: */
	struct reply arena_answer;
	pthread_cond_t to_open; /* there is an answer */
	bool prefetch; /* chunks were used: look ahead */
	struct ticket *recent[RECENT_MOST]; /* a ring, in the order of launches */
	uint32_t recent_first, recent_count;
	struct grace grace;
	struct sparse sparse;
	struct ticket *awaits[AWAITS_MOST]; /* done when a stream has waited for its value */
	atomic_bool paging; /* some chunk is or was absent: launches are looked at */
	atomic_bool quiet; /* work from before paging began has been waited for */
	bool stopped; /* nothing moves any more */
	CUresult stop_error; /* why */

	struct ticket *rising[RISING_MOST]; /* a ring of the latest copies to VRAM; the pager's */
	uint32_t risen; /* copies, of which the last is before this place of it */
	struct mover mover; /* the pager's, except the RAM slot bookkeeping */
	struct summer summer; /* the pager's */
	pthread_t pager, opener, closer;
};

static inline void device_count(struct device *device, enum counter counter, uint64_t amount)
{
	__atomic_fetch_add(&device->state->counters[counter], amount, __ATOMIC_RELAXED);
}

static inline void device_gauge(struct device *device, enum counter counter, uint64_t value)
{
	__atomic_store_n(&device->state->counters[counter], value, __ATOMIC_RELAXED);
}

/* A gauge and the counter of its highest value so far; in the lock. */
static inline void device_gauge_most(struct device *device, enum counter counter, enum counter most,
				     uint64_t value)
{
	device_gauge(device, counter, value);
	if (value > device->state->counters[most])
		device_gauge(device, most, value);
}

void residency_show(struct device *device, uint32_t chunk); /* write its letter to the state map */

/*
 * Make the spans resident and hold them. Waits on the host for room and for
 * what comes from T3; what is on its way over the bus is waited for on the
 * device, by residency_begin(). CUDA_ERROR_OUT_OF_MEMORY: they never fit at once.
 */
CUresult residency_hold(struct device *device, struct span *spans, uint32_t count,
			struct hold *hold);

/*
 * Is there room for all of the spans at once, in VRAM and so many RAM slots? None are open. In the
 * lock.
 */
bool residency_fits(const struct device *device, const struct span *spans, uint32_t count,
		    uint32_t ram);

/* How many chunks the spans lie in, each counted once; 0 without memory. None are open. In the
 * lock. */
uint32_t residency_chunks(const struct device *device, const struct span *spans, uint32_t count);

/* Let the stream wait for what is still arriving. */
CUresult residency_begin(struct hold *hold, CUstream stream, unsigned int variant);

/* Wait for it on the host instead: the stream is being captured. */
CUresult residency_begin_captured(struct hold *hold);

/*
 * Wait until nothing names the allocation, which is leaving. A launch may name
 * it without being wrong: what looks like an address in its parameters need not
 * be one.
 */
void residency_wait_unnamed(struct device *device, const struct allocation *allocation);

/* The same for chunks of a sparse one, whose run was excluded: nothing new names them. */
void residency_wait_unheld(struct device *device, uint32_t first, uint32_t chunks);

/* From now on every launch and copy is looked at. Returns once none is unseen; in no lock. */
void residency_begin_paging(struct device *device);

/*
 * Launches made before paging began left no tickets; once, everything the device was
 * given by then is waited for. The device's context must be current.
 * CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: not while something captures.
 */
CUresult residency_wait_for_the_unseen(struct device *device);

/*
 * Tell the daemon how many VRAM slots there will be. CUDA_ERROR_OUT_OF_MEMORY: what
 * is allocated would then fit nowhere, and it goes on counting on what there was. In
 * no lock.
 */
CUresult residency_announce(struct device *device, uint32_t slots);

/* Tell the daemon that T3's copies of these chunks are no longer wanted. In no lock. */
void residency_drop_extents(struct device *device, const uint32_t *chunks, uint32_t count);

/*
 * Have the chunks that a pin names, of memory of so many bytes, stay in VRAM, as far as there is
 * room beside what stays already; said where there is not. In the lock.
 */
void residency_pin(struct device *device, uint32_t first, uint32_t chunks, uint64_t bytes);
void residency_unpin(struct device *device, struct chunk *chunk); /* its allocation ends */

static inline bool hold_reads_little(const struct hold *hold, uint32_t chunk)
{
	return chunk - hold->little.first < hold->little.chunks;
}

/* Is a chunk of the hold there only in case it is read? */
static inline bool hold_guesses(const struct hold *hold, uint32_t i)
{
	return hold->guesses && hold->guessed[i];
}

/* Is a chunk of the hold where it can use it? */
static inline bool hold_usable(const struct device *device, const struct hold *hold, uint32_t i)
{
	enum chunk_state state = device->chunks[hold->chunks[i]].state;

	return state == RESIDENT ||
	       (state == MAPPED && (device->maps || hold->ram || hold_guesses(hold, i) ||
				    hold_reads_little(hold, hold->chunks[i])));
}

/* choose.c */

/*
 * Fill the hold with the chunks that the spans mean: all of them or, of guesses, as much as
 * fits. CUDA_ERROR_OUT_OF_MEMORY: it does not, and may not use RAM. In the lock.
 */
CUresult hold_choose(const struct device *device, struct span *spans, uint32_t count,
		     struct hold *hold);

bool hold_has(const struct hold *hold, uint32_t chunk);

/* How many chunks can be resident at once. In the lock. */
uint32_t residency_capacity(const struct device *device);

/*
 * How many may be used in place at once, of those that VRAM has no room for; and if the daemon
 * gives all the RAM it may. In the lock.
 */
uint32_t residency_in_place(const struct device *device);
uint32_t residency_in_place_most(const struct device *device);

/* release.c */

/*
 * Such a launch was given to the stream between these two places, one of which may be unknown.
 * They are the device's then.
 */
void residency_timed(struct device *device, const struct hold *hold, struct span_of_time time);

/* The work has been given to the stream: what it names may leave once it is done. */
void residency_release(struct device *device, struct hold *hold, CUstream stream,
		       unsigned int variant);

/*
 * The chunk must not leave before the ticket: one place a stream, as later work there is done
 * later. False: there is no place. In the lock.
 */
bool residency_add_use(struct chunk *chunk, struct ticket *ticket);

/* The work is part of a graph and may run at any time: what it names stays. */
void residency_fix(struct device *device, struct hold *hold);

/*
 * The stream was told to wait for a value that the program may yet have to write:
 * until it has come, what is used behind it must not be waited for.
 */
void residency_await(struct device *device, CUstream stream, unsigned int variant);

/* The call was not made after all, or is already over: what it named may leave. */
void residency_cancel(struct device *device, struct hold *hold);

/* handover.c: for the client's callbacks of the same names, with the device. */
void residency_daemon_gone(void *device);
int residency_counted_on(void *device);
void residency_settled(void *device, int counted_on);

/* pager.c */
int pager_start(struct device *device);
void pager_on_recall(void *device, uint64_t id, uint64_t arena);

#endif
