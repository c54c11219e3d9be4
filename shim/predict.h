/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What will be needed next, and what will be needed last. No CUDA, no locks,
 * no clock: time is the number of uses so far.
 */
#ifndef GREENBOOST_PREDICT_H
#define GREENBOOST_PREDICT_H

#include <stdbool.h>
#include <stdint.h>

#define PREDICT_NONE UINT32_MAX

/* What is remembered of one chunk. All zero: never used. */
struct history {
	uint64_t last; /* when it was last used */
	uint64_t gap; /* how long before that; 0: used at most once */
	uint32_t next; /* one more than the chunk that arrived after it last time; 0: none known */
	bool unread; /* brought in, not used since */
};

struct predictor {
	uint64_t now;
	uint32_t arrived; /* the last chunk used for the first time since it arrived */
};

void predict_init(struct predictor *p);

/* One launch or copy begins. */
void predict_tick(struct predictor *p);

/* The chunk is used now. */
void predict_use(struct predictor *p, struct history *all, uint32_t chunk);

/* The chunk was brought in. */
void predict_arrival(struct history *chunk);

/* Forget a chunk whose allocation ended. */
void predict_forget(struct history *chunk);

/*
 * When the chunk will be used again, as a guess: UINT64_MAX for never. A chunk
 * used in a loop comes back after the gap it had before, so of chunks used in
 * the same loop the one used last is needed last: a fixed part of the loop
 * stays and the rest streams, where least-recently-used would move everything.
 */
uint64_t predict_next_use(const struct predictor *p, const struct history *chunk);

/* The chunk that arrived after this one last time, else PREDICT_NONE. */
uint32_t predict_successor(const struct history *chunk);

#endif
