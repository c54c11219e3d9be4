// SPDX-License-Identifier: GPL-2.0-or-later
#include "predict_log.h"

#include <string.h>

/* However long a pass is, the program may not stray farther from the log than this. */
#define STRAY_MOST 8192

/* Launches that must agree before the cursor is moved to the latest uses: if it is lost, if not. */
#define AGREE 3
#define AGREE_WELL 16

/* So many times as long ago a use may be that is of the same kind: a pass is as long, then. */
#define AS_LONG_AGO 2

/* A chunk's doubt goes up to this. */
#define DOUBT_MOST 3

uint64_t predict_stray(const struct predictor *p)
{
	uint64_t least = p->head - p->begun[PREDICT_RECENT - 1];
	uint64_t most = predict_span(p) / PREDICT_STRAY;

	if (most > STRAY_MOST)
		most = STRAY_MOST;
	return most < least ? least : most;
}

static void set_unread(struct predictor *p, struct history *h, bool unread)
{
	p->streaming += unread - h->unread;
	p->unread += unread - h->unread;
	h->unread = unread;
}

void predict_set_leaving(struct predictor *p, struct history *h, bool leaving)
{
	p->streaming += leaving - h->leaving;
	h->leaving = leaving;
}

static uint32_t *list_of(struct predictor *p, const struct history *h)
{
	return &p->unknown[h->place][h->rank / (UINT32_MAX / PREDICT_RANKS + 1)];
}

static bool listed(const struct history *h)
{
	return h->place != PLACE_AWAY && !h->due;
}

static void list_add(struct predictor *p, uint32_t chunk)
{
	struct history *h = &p->chunks[chunk];
	uint32_t *head = list_of(p, h);

	h->newer = 0;
	h->older = *head;
	if (*head)
		p->chunks[*head - 1].newer = chunk + 1;
	*head = chunk + 1;
	p->ranks[h->place] |= 1ull << (head - p->unknown[h->place]);
}

static void list_remove(struct predictor *p, uint32_t chunk)
{
	struct history *h = &p->chunks[chunk];
	uint32_t *head = list_of(p, h);

	if (h->newer)
		p->chunks[h->newer - 1].older = h->older;
	else
		*head = h->older;
	if (h->older)
		p->chunks[h->older - 1].newer = h->newer;
	if (!*head)
		p->ranks[h->place] &= ~(1ull << (head - p->unknown[h->place]));
}

static void set_due(struct predictor *p, uint32_t chunk, uint64_t due)
{
	struct history *h = &p->chunks[chunk];

	if (listed(h) && due)
		list_remove(p, chunk);
	p->known += !h->due && due;
	p->known -= h->due && !due;
	p->absent += h->place != PLACE_VRAM && !h->due && due;
	p->absent -= h->place != PLACE_VRAM && h->due && !due;
	if (!listed(h) && h->place != PLACE_AWAY && !due) {
		h->due = 0;
		list_add(p, chunk);
	}
	h->due = due;
}

void predict_init(struct predictor *p, struct history *chunks, struct past *log, uint64_t size)
{
	memset(p, 0, sizeof(*p));
	p->chunks = chunks;
	p->log = log;
	p->size = size;
	p->head = 1;
}

void predict_begin(struct predictor *p, uint32_t tag)
{
	memmove(p->begun + 1, p->begun, sizeof(p->begun) - sizeof(p->begun[0]));
	p->begun[0] = p->head;
	p->tag = tag;
	p->anchor = 0;
}

/* The place to be written held the oldest use. */
static void forget_oldest(struct predictor *p)
{
	uint64_t oldest;
	struct history *h;

	if (p->head <= p->size)
		return;
	oldest = p->head - p->size;
	h = &p->chunks[predict_entry(p, oldest)->chunk];
	if (h->due == oldest)
		set_due(p, predict_entry(p, oldest)->chunk, predict_entry(p, oldest)->next);
	if (h->last == oldest)
		h->last = 0;
	if (p->cursor == oldest)
		p->cursor++;
	if (p->other == oldest)
		p->other = 0;
}

/*
 * Ranks of chunks used one after the other are multiples of the golden ratio, as
 * fractions: whatever share of them is above a bound, those lie evenly spread. So
 * what leaves, and has to come back the next time, is spread over the pass, and the
 * bus works while what stayed is computed on.
 */
static void set_rank(struct predictor *p, uint32_t chunk)
{
	struct history *h = &p->chunks[chunk];
	bool in_list = listed(h);

	if (in_list)
		list_remove(p, chunk);
	h->rank = ++p->turn * 2654435769u;
	if (in_list)
		list_add(p, chunk);
}

void predict_use(struct predictor *p, uint32_t chunk)
{
	struct history *h = &p->chunks[chunk];
	uint64_t prev, at = p->head;

	forget_oldest(p);
	prev = h->last;
	if (!h->rank)
		set_rank(p, chunk);
	*predict_entry(p, at) = (struct past){
		.prev = prev, .chunk = chunk, .tag = p->tag, .begins = at == p->begun[0]
	};
	if (prev)
		predict_entry(p, prev)->next = at;
	if (prev && (!p->anchor || prev < predict_entry(p, p->anchor)->prev))
		p->anchor = at;
	h->last = at;
	p->head++;
	if (p->cursor && !h->due)
		set_due(p, chunk, at);
	set_unread(p, h, false);
	predict_set_leaving(p, h, false);
}

/* The place behind the launch that the entry belongs to. */
static uint64_t launch_end(const struct predictor *p, uint64_t at)
{
	do
		at++;
	while (at < p->begun[0] && !predict_entry(p, at)->begins);
	return at;
}

/* The chunk's time has come: was it used? */
static void judge(const struct predictor *p, struct history *h)
{
	bool used = h->last + predict_stray(p) >= p->head;

	if (used && h->doubt)
		h->doubt--;
	else if (!used && h->doubt < DOUBT_MOST)
		h->doubt++;
}

/* Move the cursor, and with it what each chunk's due is. Costs a step a use in between. */
void predict_follow(struct predictor *p, uint64_t place)
{
	uint64_t to = launch_end(p, place), from = p->cursor ? p->cursor : p->head;

	for (uint64_t at = from; at < to; at++) {
		const struct past *e = predict_entry(p, at);

		if (p->chunks[e->chunk].due == at) {
			judge(p, &p->chunks[e->chunk]);
			set_due(p, e->chunk, e->next);
		}
	}
	for (uint64_t at = from; at-- > to;)
		set_due(p, predict_entry(p, at)->chunk, at);
	p->cursor = to;
}

void predict_lose(struct predictor *p)
{
	for (uint64_t at = p->cursor; at < p->head; at++)
		set_due(p, predict_entry(p, at)->chunk, 0);
	p->cursor = p->other = 0;
}

static uint64_t distance(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

/*
 * Of the chunk's uses before this launch the one nearest to a place of the log, the
 * same kind of launch rather than another; 0: none within reach.
 */
static uint64_t nearest(const struct predictor *p, uint64_t use, uint64_t place, uint64_t reach)
{
	uint64_t best = 0;
	bool same = false;

	for (uint32_t n = 0; n < PREDICT_OCCURRENCES && predict_kept(p, use);
	     n++, use = predict_entry(p, use)->prev) {
		bool alike = predict_entry(p, use)->tag == p->tag;

		if (distance(use, place) <= reach &&
		    (!best || alike > same ||
		     (alike == same && distance(use, place) < distance(best, place)))) {
			best = use;
			same = alike;
		}
		if (use + reach < place)
			break;
	}
	return best;
}

/*
 * The latest use by the same kind of launch, rather than the latest. A training step's
 * forward pass follows the one before it; what used its weights last is the optimizer, in
 * another order.
 */
static uint64_t latest_alike(const struct predictor *p, uint64_t latest)
{
	uint64_t use = latest;

	for (uint32_t n = 0; n < PREDICT_OCCURRENCES && predict_kept(p, use) &&
			     p->head - use <= AS_LONG_AGO * (p->head - latest);
	     n++, use = predict_entry(p, use)->prev)
		if (predict_entry(p, use)->tag == p->tag)
			return use;
	return latest;
}

void predict_expire(struct predictor *p)
{
	while (p->arrivals_count) {
		uint32_t chunk = p->arrivals[p->arrivals_first].chunk;
		uint64_t due = p->arrivals[p->arrivals_first].due;
		struct history *h = &p->chunks[chunk];

		if (h->unread) {
			if (p->cursor && due >= p->cursor)
				return;
			if (p->cursor && due + 2 * predict_stray(p) >= p->cursor)
				return;
			set_unread(p, h, false);
		}
		p->arrivals_first = (p->arrivals_first + 1) % PREDICT_UNREAD;
		p->arrivals_count--;
	}
}

uint64_t predict_find(struct predictor *p, bool *jumped)
{
	uint64_t use = p->anchor ? predict_entry(p, p->anchor)->prev : 0;
	uint64_t reach = predict_stray(p), due, found = 0, place;

	*jumped = false;
	if (!predict_kept(p, use))
		return 0;
	if (p->cursor) {
		due = p->chunks[predict_entry(p, p->anchor)->chunk].due;
		/* The use that is due stands nearer to the cursor than the latest. */
		found = nearest(p, due && due < p->begun[0] ? due : use, p->cursor, reach);
	}
	/*
	 * Used so lately that it is there anyway, as activations are: says nothing of where
	 * the program is in a loop over more than fits.
	 */
	if (use >= p->begun[PREDICT_RECENT - 1] || use + p->slots > p->head)
		return found;
	if (found && (use <= found + reach || predict_entry(p, use)->tag != p->tag)) {
		p->other = 0;
		return found;
	}
	/* It is lost, or can be followed through a later pass as well. */
	use = latest_alike(p, use);
	place = p->other ? nearest(p, use, p->other, reach) : 0;
	p->agreed = place ? p->agreed + 1 : 1;
	if (!place)
		place = use;
	p->other = launch_end(p, place);
	if (p->agreed < (found ? AGREE_WELL : AGREE))
		return found;
	p->other = 0;
	*jumped = true;
	return place;
}

void predict_moved(struct predictor *p, uint32_t chunk, enum predict_place place, bool ahead)
{
	struct history *h = &p->chunks[chunk];

	if (listed(h))
		list_remove(p, chunk);
	p->absent -= h->due && h->place != PLACE_VRAM;
	p->absent += h->due && place != PLACE_VRAM;
	h->place = (uint8_t)place;
	if (listed(h))
		list_add(p, chunk);
	if (place != PLACE_VRAM) {
		set_unread(p, h, false);
		predict_set_leaving(p, h, false);
	}
	if (place == PLACE_VRAM && ahead && !h->unread && p->arrivals_count < PREDICT_UNREAD) {
		uint32_t last = (p->arrivals_first + p->arrivals_count++) % PREDICT_UNREAD;

		p->arrivals[last].chunk = chunk;
		p->arrivals[last].due = h->due;
		set_unread(p, h, true);
	}
	/* What left although it is due soon is looked at again. */
	for (int i = 0; i < PLACES; i++)
		if (place != PLACE_VRAM && h->due && p->ahead[i] > h->due)
			p->ahead[i] = h->due;
}

void predict_forget(struct predictor *p, uint32_t chunk)
{
	predict_moved(p, chunk, PLACE_AWAY, false);
}
