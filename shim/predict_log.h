/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside the predictor: the log of uses, and the cursor that runs through it beside the program. */
#ifndef GREENBOOST_PREDICT_LOG_H
#define GREENBOOST_PREDICT_LOG_H

#include "predict.h"

/* A chunk's uses to look at when asking where something is. */
#define PREDICT_OCCURRENCES 8

/* The program may stray so far from the log and still be followed: a share of a pass. */
#define PREDICT_STRAY 16

/* A place of the log that is kept and belongs to the past of the current launch. */
static inline bool predict_kept(const struct predictor *p, uint64_t at)
{
	return at && at < p->head && at + p->size > p->head;
}

static inline struct past *predict_entry(const struct predictor *p, uint64_t at)
{
	return &p->log[at & (p->size - 1)];
}

static inline uint64_t predict_span(const struct predictor *p)
{
	return p->cursor ? p->head - p->cursor : 0;
}

/* So far may the program be from the log and still be followed. */
uint64_t predict_stray(const struct predictor *p);

/* Whether the chunk is in VRAM only until somebody needs the place. */
void predict_set_leaving(struct predictor *p, struct history *h, bool leaving);

/*
 * Where the launch stood the last time, to go by the chunk of it that was not used for
 * longest; 0: not known, or the program is where it was. *jumped: it is elsewhere.
 */
uint64_t predict_find(struct predictor *p, bool *jumped);

/* The cursor goes behind the launch that the place belongs to. */
void predict_follow(struct predictor *p, uint64_t place);

/* What the program does now it has not done before, or long ago. */
void predict_lose(struct predictor *p);

/* Unread chunks whose time has passed are like others again. */
void predict_expire(struct predictor *p);

#endif
