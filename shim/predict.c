// SPDX-License-Identifier: GPL-2.0-or-later
#include "predict.h"

#include <string.h>

void predict_init(struct predictor *p)
{
	p->now = 1;
	p->arrived = PREDICT_NONE;
}

void predict_tick(struct predictor *p)
{
	p->now++;
}

void predict_use(struct predictor *p, struct history *all, uint32_t chunk)
{
	struct history *h = &all[chunk];

	if (h->last != p->now) {
		h->gap = h->last ? p->now - h->last : 0;
		h->last = p->now;
	}
	if (!h->unread)
		return;
	/*
	 * Only arrivals are chained: chunks that stay would tie the chain in
	 * knots, as the activations that every layer uses come after each of them.
	 */
	h->unread = false;
	if (p->arrived != PREDICT_NONE && p->arrived != chunk)
		all[p->arrived].next = chunk + 1;
	p->arrived = chunk;
}

void predict_arrival(struct history *chunk)
{
	chunk->unread = true;
}

void predict_forget(struct history *chunk)
{
	memset(chunk, 0, sizeof(*chunk));
}

uint64_t predict_next_use(const struct predictor *p, const struct history *chunk)
{
	uint64_t due;

	if (chunk->unread)
		return p->now; /* it was brought in to be used: leaving now would be a wasted trip
				*/
	if (chunk->gap == 0)
		return UINT64_MAX;
	due = chunk->last + chunk->gap;
	if (due >= p->now)
		return due;
	/* Overdue: the loop it was in has ended or changed; the longer ago, the less likely. */
	return p->now + 2 * (p->now - chunk->last);
}

uint32_t predict_successor(const struct history *chunk)
{
	return chunk->next ? chunk->next - 1 : PREDICT_NONE;
}
