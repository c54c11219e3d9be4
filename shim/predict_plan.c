// SPDX-License-Identifier: GPL-2.0-or-later
#include "predict_plan.h"

#include <string.h>

#include "predict_log.h"

/* A chunk that was to leave, and did not, stays after this share of a pass (to divide by; a larger
 * one if of late it was not used when it was due), and after so many launches more. */
#define LEAVING 24
#define LEAVING_IN_DOUBT 16
#define LEAVING_LAUNCHES 2

/* Places to stream through: for the launch that needs most of them, a share of what does not fit
 * (to divide by), and a few. */
#define STREAM_SHARE 64
#define STREAM_LEAST 4

/* Places that were missing, of the last passes: each counts for less than that before it. */
#define SHORT_SHARE 4

/* By how much of a score (2^32 is a whole pass) the rank decides. */
#define ALL ((uint64_t)1 << 32)
#define BY_RANK (ALL / 4)

/*
 * Who leaves after a use: those that are due late. Among those due equally late, as
 * in a loop, the rank decides, and those that would have to be written stay.
 */
static uint32_t score(const struct predictor *p, uint32_t chunk, uint64_t distance, uint64_t scale)
{
	const struct history *h = &p->chunks[chunk];
	uint64_t late = (distance * scale >> 16), sum;

	if (late > UINT32_MAX)
		late = UINT32_MAX;
	sum = late - late / 4 + h->rank / 4;
	if (h->changes)
		sum = sum > BY_RANK ? sum - BY_RANK : 0;
	return (uint32_t)sum;
}

uint64_t plan_overflow(const struct predictor *p)
{
	return p->known > p->slots ? p->known - p->slots : 0;
}

uint64_t plan_places(const struct predictor *p)
{
	uint32_t burst = p->burst > p->burst_before ? p->burst : p->burst_before;
	uint64_t places = plan_overflow(p) / STREAM_SHARE + STREAM_LEAST + burst + p->shortage;

	return places < p->slots / 4 ? places : p->slots / 4;
}

void plan_guess(struct predictor *p)
{
	uint64_t streamed = plan_overflow(p) ? plan_overflow(p) + plan_places(p) : 0;

	p->bound = ALL - streamed * BY_RANK / (p->known + 1);
}

void plan_begin(struct predictor *p)
{
	memset(p->occupied, 0, sizeof(p->occupied));
	p->plan_at = p->plan_begin = p->cursor;
	p->plan_end = p->head;
	p->plan_scale = p->scale;
}

static void end_plan(struct predictor *p)
{
	uint64_t room = (p->slots - plan_places(p)) * (p->plan_end - p->plan_begin);
	uint64_t sum = 0;
	uint32_t i;

	for (i = 0; i < PREDICT_SCORES && sum + p->occupied[i] <= room; i++)
		sum += p->occupied[i];
	p->bound = (uint64_t)i << 32;
	if (i < PREDICT_SCORES)
		p->bound += ((room - sum) << 20) / p->occupied[i] << 12;
	p->bound /= PREDICT_SCORES;
	p->burst_before = p->burst;
	p->shortage += p->failed / SHORT_SHARE - (p->shortage + SHORT_SHARE - 1) / SHORT_SHARE;
	p->failed = 0;
	p->burst = 0;
	plan_begin(p);
}

/* How long the chunk stays if it is not taken out between this use and its next. */
static uint64_t stay(const struct predictor *p, uint64_t at)
{
	uint64_t next = predict_entry(p, at)->next, first = at;

	if (next && next < p->plan_end)
		return next - at;
	/* Its first use in the pass stands for that in the one after it. */
	for (int n = 0; n < PREDICT_OCCURRENCES; n++) {
		uint64_t prev = predict_entry(p, first)->prev;

		if (prev < p->plan_begin || !predict_kept(p, prev))
			break;
		first = prev;
	}
	return p->plan_end - at + first - p->plan_begin;
}

/*
 * Choose the bound: who leaves after a use and who stays until the next. All uses of a
 * pass are asked for how long their chunk would stay and what score it has; from the
 * lowest on as many stay as there is room for. That is done for some uses at a time.
 */
static void choose_bound(struct predictor *p, uint64_t uses)
{
	if (!predict_kept(p, p->plan_at))
		plan_begin(p);
	for (; uses-- && p->plan_at < p->plan_end; p->plan_at++) {
		uint64_t stays = stay(p, p->plan_at);
		uint32_t s = score(p, predict_entry(p, p->plan_at)->chunk, stays, p->plan_scale);

		p->occupied[(uint64_t)s * PREDICT_SCORES >> 32] += stays;
	}
	if (p->plan_at >= p->plan_end)
		end_plan(p);
}

static uint32_t nth(const struct predictor *p, uint32_t n)
{
	return (p->leaving_first + n) % PREDICT_LEAVING;
}

/* For how many uses it is to leave. */
static uint64_t leaving(const struct predictor *p, const struct leaver *l)
{
	return predict_span(p) / (p->chunks[l->chunk].doubt ? LEAVING_IN_DOUBT : LEAVING);
}

static bool stale(const struct predictor *p, const struct leaver *l)
{
	return !p->chunks[l->chunk].leaving || p->chunks[l->chunk].due != l->due;
}

/* Those that are used again, gone, or were to leave so long ago that they are due soon. */
static void drop_stale(struct predictor *p)
{
	while (p->leaving_count) {
		const struct leaver *l = &p->leaving[p->leaving_first];

		if (!stale(p, l)) {
			if (p->head - l->use <= leaving(p, l) ||
			    l->use >= p->begun[LEAVING_LAUNCHES])
				break;
			predict_set_leaving(p, &p->chunks[l->chunk], false);
		} else if (p->chunks[l->chunk].last == l->use) {
			/* The program has gone past its due without using it. */
			predict_set_leaving(p, &p->chunks[l->chunk], false);
		}
		p->leaving_first = (p->leaving_first + 1) % PREDICT_LEAVING;
		p->leaving_count--;
	}
}

/* Who of this launch leaves after it. */
static void mark(struct predictor *p)
{
	uint32_t marked = 0;

	for (uint64_t at = p->begun[0]; at < p->head; at++) {
		uint32_t chunk = predict_entry(p, at)->chunk;
		struct history *h = &p->chunks[chunk];

		if (score(p, chunk, h->due - p->cursor, p->scale) < p->bound ||
		    p->leaving_count == PREDICT_LEAVING)
			continue;
		predict_set_leaving(p, h, true);
		marked++;
		p->leaving[nth(p, p->leaving_count++)] =
			(struct leaver){ .use = at, .due = h->due, .chunk = chunk };
	}
	if (p->burst < marked)
		p->burst = marked;
}

void plan_go_on(struct predictor *p)
{
	choose_bound(p, 2 * (p->head - p->begun[0]));
	drop_stale(p);
	mark(p);
}

uint32_t plan_leaving(struct predictor *p)
{
	drop_stale(p);
	return p->leaving_count;
}

uint32_t plan_leaver(const struct predictor *p, uint32_t n)
{
	const struct leaver *l = &p->leaving[nth(p, n)];

	return stale(p, l) ? PREDICT_NONE : l->chunk;
}
