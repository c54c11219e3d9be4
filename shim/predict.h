/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What will be needed next, and what last. No CUDA, no locks, no clock: what
 * happens is told in its order, the caller's lock guards it.
 *
 * Temporal streaming: what followed last time follows again. All uses are kept in
 * a log, and a cursor runs through the log's past alongside the program. Ahead of
 * the cursor lies what comes next, which is brought in; the first place ahead where
 * the log has a chunk is when that is due, and who is due last leaves. A chunk just
 * used is due, for all one knows, a whole pass later: so of a loop over more than
 * fits, a part stays and the rest streams, where least-recently-used would move all.
 */
#ifndef GREENBOOST_PREDICT_H
#define GREENBOOST_PREDICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PREDICT_NONE UINT32_MAX

/* Where a chunk is, as far as it matters who leaves. */
enum predict_place { PLACE_AWAY, PLACE_RAM, PLACE_VRAM, PLACES };

/*
 * How well a chunk could leave, the later the better. Busy: the device still uses it.
 * Dirty: it was changed before it left the last time. New: there never was a copy
 * below, so it has to be written, perhaps for the only time. Last: only if nothing
 * else can; grace: nor even one of those.
 */
enum predict_leave {
	LEAVE_NOT,
	LEAVE_GRACE,
	LEAVE_LAST,
	LEAVE_BUSY_DIRTY,
	LEAVE_DIRTY,
	LEAVE_BUSY_NEW,
	LEAVE_NEW,
	LEAVE_BUSY,
	LEAVE_CLEAN,
};

static inline bool predict_busy(enum predict_leave leave)
{
	return leave == LEAVE_BUSY || leave == LEAVE_BUSY_NEW || leave == LEAVE_BUSY_DIRTY;
}

/* What is remembered of one chunk. All zero: nothing. */
struct history {
	uint64_t last; /* its latest place in the log; 0: none that is kept */
	uint64_t due; /* its first place at or ahead of the cursor; 0: unknown */
	uint32_t rank; /* who leaves among those due about equally late: the highest */
	uint32_t newer, older; /* plus one: neighbours in the list of those whose due is unknown */
	uint8_t place;
	bool unread; /* brought in ahead of its use, which has not come */
	bool leaving; /* in VRAM only until somebody needs the place */
	uint8_t doubt; /* how often of late it was not used when it was due */
	bool changes; /* it was dirty when it left the last time */
};

/* One use in the log. */
struct past {
	uint64_t prev, next; /* the same chunk's uses; 0: none. May lie outside what is kept */
	uint32_t chunk;
	uint32_t tag : 31; /* of its launch */
	uint32_t begins : 1; /* the first of its launch */
};

#define PREDICT_RECENT 4
#define PREDICT_RANKS 64
#define PREDICT_UNREAD 1024
#define PREDICT_LEAVING 4096
#define PREDICT_SCORES 1024

/* A chunk that is leaving. */
struct leaver {
	uint64_t use; /* its use in the log */
	uint64_t due; /* stale unless that is still its due */
	uint32_t chunk;
};

struct predictor {
	struct history *chunks;
	struct past *log;
	uint64_t size; /* entries of log, a power of two */
	uint64_t head; /* the next place to be written; places count from 1 */
	uint64_t cursor; /* the launch that comes next is here; 0: nothing is followed */
	uint64_t other; /* where the latest uses say that it should be; 0: just there */
	uint64_t found; /* head when the program was last found in the log */
	uint32_t agreed; /* launches in a row that speak for it */
	uint64_t begun[PREDICT_RECENT]; /* where the latest launches begin, this one first */
	uint32_t tag : 31; /* of this launch */
	uint64_t anchor; /* the entry of this launch whose chunk was not used for longest */
	uint32_t turn; /* chunks used anew so far: ranks come from it */
	uint32_t known; /* chunks with a due */
	uint32_t absent; /* of those, not in VRAM */
	uint64_t ahead[PLACES]; /* where looking ahead for this place got to */
	uint32_t unknown[PLACES][PREDICT_RANKS]; /* heads of lists, plus one, by rank */
	uint64_t ranks[PLACES]; /* which of the lists are not empty */
	uint32_t unread; /* how many are */
	struct {
		uint32_t chunk;
		uint64_t due;
	} arrivals[PREDICT_UNREAD]; /* those, in order of arrival */
	uint32_t arrivals_first, arrivals_count;
	uint64_t bound; /* who scores as much as this leaves after its use */
	uint64_t scale; /* 2^48 by the length of the pass */
	uint64_t plan_begin, plan_at, plan_end, plan_scale; /* the pass that the next is from */
	uint64_t occupied[PREDICT_SCORES]; /* for it, uses by score: for how long they would stay */
	struct leaver leaving[PREDICT_LEAVING]; /* those, in order of use */
	uint32_t leaving_first, leaving_count;
	uint32_t streaming; /* in VRAM and unread or leaving */
	uint32_t burst, burst_before; /* most that one launch marked, in this plan and the last */
	uint32_t failed; /* in this plan, how often who waited found nobody marked to leave */
	uint64_t unplanned; /* how many left VRAM that were to stay */
	uint32_t shortage; /* places to stream through that were missing, for that */
	uint32_t slots; /* of VRAM */
};

/* chunks: as many as there are indexes, all zero. log: size entries, a power of two. */
void predict_init(struct predictor *p, struct history *chunks, struct past *log, uint64_t size);

/* A launch or copy begins; tag tells apart kinds of them, 0 if that is not known. */
void predict_begin(struct predictor *p, uint32_t tag);

/* It names the chunk. */
void predict_use(struct predictor *p, uint32_t chunk);

/* It has named all: follow it. */
void predict_end(struct predictor *p);

/* The chunk came to a place; ahead: before it was asked for. */
void predict_moved(struct predictor *p, uint32_t chunk, enum predict_place place, bool ahead);

/* How many chunks fit in VRAM. */
void predict_slots(struct predictor *p, uint32_t slots);

/* The chunk has left VRAM, and had to be written or not. */
void predict_left(struct predictor *p, uint32_t chunk, bool changed);

/* The chunk's memory was freed. What was learned of it stays: the next tenant is often like it. */
void predict_forget(struct predictor *p, uint32_t chunk);

/*
 * How urgently a place is needed: ahead of use; ahead, and the bus has nothing else to do;
 * by somebody who waits, while the bus has other things to do; and so that the bus has.
 */
enum predict_haste { HASTE_AHEAD, HASTE_IDLE, HASTE_PATIENT, HASTE_HURRY };

typedef enum predict_leave (*predict_may_leave)(void *arg, uint32_t chunk);

/*
 * The chunk of VRAM or RAM to leave; PREDICT_NONE: none may. What the program that is followed
 * does not use any more goes first, though it be dirty. Ahead of use only one that
 * is not busy and, unless the bus is idle, would have left soon. One that was brought in and
 * is unread only if somebody waits and nothing else may.
 */
uint32_t predict_victim(struct predictor *p, enum predict_place place, enum predict_haste haste,
			predict_may_leave may_leave, void *arg);

typedef bool (*predict_wanted)(void *arg, uint32_t chunk);

/*
 * How far ahead to look: what comes earlier than it must takes the place of others for longer;
 * the bus has nothing else to do; nothing has to leave.
 */
enum predict_reach { REACH_NEAR, REACH_IDLE, REACH_ROOM };

/*
 * The next chunk ahead that is wanted in that place; PREDICT_NONE: none is near enough. Goes
 * on from where it got to the last time, so each use of a pass is looked at about once.
 */
uint32_t predict_next(struct predictor *p, enum predict_place place, enum predict_reach reach,
		      predict_wanted wanted, void *arg);

#endif
