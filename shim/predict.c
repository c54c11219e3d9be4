// SPDX-License-Identifier: GPL-2.0-or-later
#include "predict.h"

#include <string.h>

#include "predict_log.h"
#include "predict_plan.h"

/*
 * Shares of a pass, as what to divide its uses by. These and those of the log and the plan
 * were chosen by replaying traces (tools/replay): a larger share of a pass keeps the bus
 * busier and moves more bytes.
 */
#define LEAD 32 /* is looked ahead */
#define LEAD_IDLE 16 /* and if the bus has nothing else to do */
#define LEAD_IDLE_MOST 4 /* also where one launch names more */
#define LAST 32 /* a victim is sought among those due last */
#define LAST_RAM 4 /* in RAM; or for parts of a pass nothing is read from T3 */
#define FARTHER 2 /* and among these if none of them is good */
#define RETURN 3 /* passes at most from one use to the next of what is used in every few */
#define LOST 4 /* not found in it for so long, the program does not follow the log any more */

/* Not brought in ahead any more, as experts that tokens are seldom routed to. Read from T3 in vain,
 * a chunk takes the disk's time for many that are copied. */
#define DOUBTFUL 2
#define DOUBTFUL_T3 1

/* Chunks to ask of when nothing is known of any. */
#define UNKNOWN_ASKED 1024

/* A whole pass, as what distances in it are multiplied with (struct predictor's scale). */
#define WHOLE ((uint64_t)1 << 48)

void predict_slots(struct predictor *p, uint32_t slots)
{
	p->slots = slots;
}

void predict_left(struct predictor *p, uint32_t chunk, bool changed)
{
	struct history *h = &p->chunks[chunk];

	h->changes = changed;
	if (p->cursor && h->due && !h->leaving)
		p->unplanned++;
}

void predict_end(struct predictor *p)
{
	bool jumped, first = !p->cursor;
	uint64_t found = predict_find(p, &jumped);

	if (found) {
		predict_follow(p, found);
		p->scale = WHOLE / (predict_span(p) + 1);
		p->found = p->head;
	} else if (p->cursor && p->head - p->found > predict_span(p) / LOST + p->slots) {
		predict_lose(p);
	}
	if (jumped) {
		memset(p->ahead, 0, sizeof(p->ahead));
		plan_begin(p);
		if (first)
			plan_guess(p);
	}
	predict_expire(p);
	if (p->cursor)
		plan_go_on(p);
}

/* The best so far, and how it is weighed. */
struct choice {
	predict_may_leave may_leave;
	void *arg;
	enum predict_haste haste;
	uint32_t chunk;
	enum predict_leave leave;
	uint32_t rank;
	uint32_t asked;
};

/* The order of enum predict_leave, but in a hurry what can leave now goes before what cannot. */
static int worth(enum predict_leave leave, enum predict_haste haste)
{
	if (haste <= HASTE_IDLE && (predict_busy(leave) || leave <= LEAVE_LAST))
		return LEAVE_NOT;
	if (haste == HASTE_HURRY && leave == LEAVE_BUSY)
		return LEAVE_NEW;
	if (haste == HASTE_HURRY && leave == LEAVE_NEW)
		return LEAVE_BUSY;
	return (int)leave;
}

static void weigh(const struct predictor *p, struct choice *choice, uint32_t chunk)
{
	enum predict_leave leave = choice->may_leave(choice->arg, chunk);
	int value = worth(leave, choice->haste), best = worth(choice->leave, choice->haste);
	uint32_t rank = p->chunks[chunk].rank;

	choice->asked += leave != LEAVE_NOT;
	if (value == LEAVE_NOT || value < best)
		return;
	/* Of busy ones the oldest, which is asked about last, is done first. */
	if (value > best || predict_busy(leave) || rank > choice->rank) {
		choice->chunk = chunk;
		choice->leave = leave;
		choice->rank = rank;
	}
}

/* Lately, and before that too: it may be of a loop that fits. */
static bool used_again(const struct predictor *p, uint32_t chunk)
{
	uint64_t last = p->chunks[chunk].last;

	return predict_kept(p, last) && last + p->slots > p->head &&
	       predict_kept(p, predict_entry(p, last)->prev);
}

/* It has to be written, and it stayed away as long as now before and came back, within passes. */
static bool comes_back(const struct predictor *p, uint32_t chunk)
{
	uint64_t at = p->chunks[chunk].last, away = p->head - at;

	if (!p->cursor || !p->chunks[chunk].changes)
		return false;
	for (int n = 0; n < PREDICT_OCCURRENCES && predict_kept(p, at); n++) {
		uint64_t prev = predict_entry(p, at)->prev;

		if (predict_kept(p, prev) && at - prev >= away &&
		    at - prev <= RETURN * predict_span(p))
			return true;
		at = prev;
	}
	return false;
}

/* Nobody expects them soon, or nothing is followed. */
static void weigh_unknown(const struct predictor *p, enum predict_place place, bool again,
			  struct choice *choice)
{
	bool vram = place == PLACE_VRAM;
	uint64_t ranks = p->ranks[place];

	while (ranks && choice->leave < LEAVE_BUSY && choice->asked < UNKNOWN_ASKED) {
		int rank = 63 - __builtin_clzll(ranks);
		uint32_t next = p->unknown[place][rank];

		ranks &= ~(1ull << rank);
		for (; next; next = p->chunks[next - 1].older)
			if (!p->chunks[next - 1].unread &&
			    again == (used_again(p, next - 1) || (vram && comes_back(p, next - 1))))
				weigh(p, choice, next - 1);
	}
}

/* From the one due last on. */
static void weigh_known(const struct predictor *p, enum predict_place place, bool unread,
			struct choice *choice)
{
	uint64_t enough = predict_span(p) / (place == PLACE_RAM ? LAST_RAM : LAST);
	uint64_t least = p->head - p->begun[2];
	uint64_t most = predict_span(p) / FARTHER;
	enum predict_leave good = choice->haste == HASTE_PATIENT ? LEAVE_BUSY : LEAVE_CLEAN;

	if (enough < least)
		enough = least;
	for (uint64_t at = p->head; p->cursor && at-- > p->cursor;) {
		uint32_t chunk = predict_entry(p, at)->chunk;
		const struct history *h = &p->chunks[chunk];

		if (p->head - at > enough && choice->leave >= good)
			break;
		/* Not those that would be next to be brought in, unless somebody waits for that. */
		if (p->head - at > most &&
		    (choice->leave > LEAVE_LAST || choice->haste == HASTE_IDLE))
			break;
		if (h->due == at && h->place == place && h->unread == unread)
			weigh(p, choice, chunk);
	}
}

/* Of those that are to leave the first, if it may and need not be waited for in vain. */
static uint32_t first_leaver(struct predictor *p, const struct choice *choice)
{
	uint32_t count = plan_leaving(p);

	for (uint32_t i = 0; i < count; i++) {
		uint32_t chunk = plan_leaver(p, i);
		enum predict_leave leave;

		if (chunk == PREDICT_NONE)
			continue;
		leave = choice->may_leave(choice->arg, chunk);
		if (leave <= LEAVE_LAST)
			continue;
		/* Those behind it were used later. */
		return predict_busy(leave) && choice->haste != HASTE_PATIENT ? PREDICT_NONE : chunk;
	}
	return PREDICT_NONE;
}

uint32_t predict_victim(struct predictor *p, enum predict_place place, enum predict_haste haste,
			predict_may_leave may_leave, void *arg)
{
	struct choice choice = {
		.may_leave = may_leave, .arg = arg, .haste = haste, .chunk = PREDICT_NONE
	};
	bool planned = place == PLACE_VRAM && p->cursor;

	weigh_unknown(p, place, false, &choice);
	if (planned) {
		uint32_t first;

		/* For a pass nobody has used it: written once, it is out of the way. */
		if (choice.leave > LEAVE_LAST && !predict_busy(choice.leave))
			return choice.chunk;
		first = first_leaver(p, &choice);
		if (first != PREDICT_NONE)
			return first;
		/* Looking ahead must not take from what stays. */
		if (haste == HASTE_AHEAD)
			return choice.chunk;
	}
	if (choice.leave < LEAVE_BUSY)
		weigh_known(p, place, false, &choice);
	if (choice.leave < LEAVE_NEW && haste != HASTE_IDLE)
		weigh_unknown(p, place, true, &choice);
	if (planned && choice.chunk != PREDICT_NONE && haste != HASTE_IDLE)
		p->failed++;
	if (choice.leave > LEAVE_LAST || haste <= HASTE_IDLE)
		return choice.chunk;
	weigh_known(p, place, true, &choice);
	for (uint32_t i = 0; i < p->arrivals_count && choice.leave <= LEAVE_LAST; i++) {
		uint32_t chunk = p->arrivals[(p->arrivals_first + i) % PREDICT_UNREAD].chunk;

		if (p->chunks[chunk].unread && p->chunks[chunk].place == place)
			weigh(p, &choice, chunk);
	}
	return choice.chunk;
}

/*
 * How far to look ahead, in uses. What is brought in earlier takes the place of
 * others for longer, by just this share of a pass.
 */
static uint64_t lead(const struct predictor *p, enum predict_place place, bool idle)
{
	uint64_t least = 2 * (p->head - p->begun[0]);
	uint64_t most = predict_span(p) / (idle ? LEAD_IDLE : LEAD);

	if (most < least)
		most = least;
	if (idle && most > predict_span(p) / LEAD_IDLE_MOST)
		most = predict_span(p) / LEAD_IDLE_MOST;
	return place == PLACE_RAM ? 2 * most : most;
}

/*
 * Is more of what is absent due behind this place than if it were spread evenly?
 * Then some has to come earlier, or the bus is idle before and too slow after.
 */
static bool crowded(const struct predictor *p, uint64_t at)
{
	if (p->head - at < predict_span(p) / 2)
		return false;
	if (p->streaming > plan_places(p))
		return true;
	return p->absent > plan_overflow(p) * (p->head - at) / predict_span(p) + plan_places(p);
}

uint32_t predict_next(struct predictor *p, enum predict_place place, enum predict_reach reach,
		      predict_wanted wanted, void *arg)
{
	uint64_t at = p->ahead[place], end;
	bool room = reach == REACH_ROOM;
	int doubtful = place == PLACE_RAM ? DOUBTFUL_T3 : DOUBTFUL;

	/* What the program does now has nothing to do with what came next there. */
	if (!p->cursor || p->head - p->found > predict_span(p) / PREDICT_STRAY)
		return PREDICT_NONE;
	if (at < p->cursor)
		at = p->cursor;
	end = p->cursor + lead(p, place, reach == REACH_IDLE);
	for (; at < p->head && (at < end || room || crowded(p, at)); at++) {
		p->ahead[place] = at;
		if ((room || p->chunks[predict_entry(p, at)->chunk].doubt < doubtful) &&
		    wanted(arg, predict_entry(p, at)->chunk))
			return predict_entry(p, at)->chunk;
	}
	return PREDICT_NONE;
}
