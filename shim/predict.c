// SPDX-License-Identifier: GPL-2.0-or-later
#include "predict.h"

#include <string.h>

/*
 * Shares of a pass, as what to divide its uses by. All were chosen by replaying traces
 * (tools/replay): a larger share of a pass keeps the bus busier and moves more bytes.
 */
#define STRAY 16 /* the program may stray so far from the log and still be followed */
#define LEAD 32 /* is looked ahead; whatever comes earlier takes the place of others for longer */
#define LEAVING 16 /* after that a chunk that was to leave, and did not, stays */
#define LAST 32 /* a victim is sought among those due last */
#define FARTHER 4 /* times as far if none of them is good */

#define LOST 4 /* after that the log is not followed any more */

#define STRAY_MOST 8192

/* A chunk's uses to look at when asking where the program is. */
#define OCCURRENCES 8

/* Launches that must agree before the cursor is moved to the latest uses: if it is lost, if not. */
#define AGREE 3
#define AGREE_WELL 16

/* Not brought in ahead any more, as experts that tokens are seldom routed to; and the most. */
#define DOUBTFUL 2
#define DOUBT_MOST 3

/* Places to stream through: for the launch that needs most of them, a share of what does not fit
 * (to divide by), and a few. */
#define STREAM_SHARE 64
#define STREAM_LEAST 4

/* By how much of a score (2^32 is a whole pass) the rank decides. */
#define ALL ((uint64_t)1 << 32)
#define BY_RANK (ALL / 4)

/* Chunks to ask of when nothing is known of any. */
#define UNKNOWN_ASKED 1024

/* A place of the log that is kept and belongs to the past of the current launch. */
static bool kept(const struct predictor *p, uint64_t at)
{
	return at && at < p->head && at + p->size > p->head;
}

static struct past *entry(const struct predictor *p, uint64_t at)
{
	return &p->log[at & (p->size - 1)];
}

static uint64_t span(const struct predictor *p)
{
	return p->cursor ? p->head - p->cursor : 0;
}

static uint64_t stray(const struct predictor *p)
{
	uint64_t most = span(p) / STRAY, least = p->head - p->begun[PREDICT_RECENT - 1];

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

static void set_leaving(struct predictor *p, struct history *h, bool leaving)
{
	p->streaming += leaving - h->leaving;
	h->leaving = leaving;
}

/* ---- the chunks whose due is unknown, by rank ---- */

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

/* ---- the log and the cursor ---- */

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
	h = &p->chunks[entry(p, oldest)->chunk];
	if (h->due == oldest)
		set_due(p, entry(p, oldest)->chunk, entry(p, oldest)->next);
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
	*entry(p, at) = (struct past){
		.prev = prev, .chunk = chunk, .tag = p->tag, .begins = at == p->begun[0]
	};
	if (prev)
		entry(p, prev)->next = at;
	if (prev && (!p->anchor || prev < entry(p, p->anchor)->prev))
		p->anchor = at;
	h->last = at;
	p->head++;
	if (p->cursor && !h->due)
		set_due(p, chunk, at);
	set_unread(p, h, false);
	set_leaving(p, h, false);
}

/* The place behind the launch that the entry belongs to. */
static uint64_t launch_end(const struct predictor *p, uint64_t at)
{
	do
		at++;
	while (at < p->begun[0] && !entry(p, at)->begins);
	return at;
}

/* The chunk's time has come: was it used? */
static void judge(const struct predictor *p, struct history *h)
{
	bool used = h->last + stray(p) >= p->head;

	if (used && h->doubt)
		h->doubt--;
	else if (!used && h->doubt < DOUBT_MOST)
		h->doubt++;
}

/* Move the cursor, and with it what each chunk's due is. Costs a step a use in between. */
static void move_cursor(struct predictor *p, uint64_t to)
{
	uint64_t from = p->cursor ? p->cursor : p->head;

	for (uint64_t at = from; at < to; at++) {
		const struct past *e = entry(p, at);

		if (p->chunks[e->chunk].due == at) {
			judge(p, &p->chunks[e->chunk]);
			set_due(p, e->chunk, e->next);
		}
	}
	for (uint64_t at = from; at-- > to;)
		set_due(p, entry(p, at)->chunk, at);
	p->cursor = to;
}

/* What the program does now it has not done before, or long ago. */
static void lose_cursor(struct predictor *p)
{
	for (uint64_t at = p->cursor; at < p->head; at++)
		set_due(p, entry(p, at)->chunk, 0);
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

	for (uint32_t n = 0; n < OCCURRENCES && kept(p, use); n++, use = entry(p, use)->prev) {
		bool alike = entry(p, use)->tag == p->tag;

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

/* Unread chunks whose time has passed are like others again. */
static void expire_arrivals(struct predictor *p)
{
	while (p->arrivals_count) {
		uint32_t chunk = p->arrivals[p->arrivals_first].chunk;
		uint64_t due = p->arrivals[p->arrivals_first].due;
		struct history *h = &p->chunks[chunk];

		if (h->unread) {
			if (p->cursor && due >= p->cursor)
				return;
			if (p->cursor && due + 2 * stray(p) >= p->cursor)
				return;
			set_unread(p, h, false);
		}
		p->arrivals_first = (p->arrivals_first + 1) % PREDICT_UNREAD;
		p->arrivals_count--;
	}
}

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

/* So many chunks of the pass do not fit. */
static uint64_t overflow(const struct predictor *p)
{
	return p->known > p->slots ? p->known - p->slots : 0;
}

/* So many places are for what comes and goes; the others keep what they have. */
static uint64_t places_to_stream(const struct predictor *p)
{
	uint32_t burst = p->burst > p->burst_before ? p->burst : p->burst_before;
	uint64_t places = overflow(p) / STREAM_SHARE + STREAM_LEAST + burst + p->shortage;

	return places < p->slots / 4 ? places : p->slots / 4;
}

/* Until a pass has been looked at: as if all of it were one loop. */
static void guess_bound(struct predictor *p)
{
	uint64_t streamed = overflow(p) ? overflow(p) + places_to_stream(p) : 0;

	p->bound = ALL - streamed * BY_RANK / (p->known + 1);
}

static void begin_plan(struct predictor *p)
{
	memset(p->occupied, 0, sizeof(p->occupied));
	p->plan_at = p->plan_begin = p->cursor;
	p->plan_end = p->head;
	p->plan_scale = p->scale;
}

static void end_plan(struct predictor *p)
{
	uint64_t room = (p->slots - places_to_stream(p)) * (p->plan_end - p->plan_begin);
	uint64_t sum = 0;
	uint32_t i;

	for (i = 0; i < PREDICT_SCORES && sum + p->occupied[i] <= room; i++)
		sum += p->occupied[i];
	p->bound = (uint64_t)i << 32;
	if (i < PREDICT_SCORES)
		p->bound += ((room - sum) << 20) / p->occupied[i] << 12;
	p->bound /= PREDICT_SCORES;
	p->burst_before = p->burst;
	p->shortage += p->forced / 4 - p->shortage / 8;
	p->forced = 0;
	p->burst = 0;
	begin_plan(p);
}

/* How long the chunk stays if it is not taken out between this use and its next. */
static uint64_t stay(const struct predictor *p, uint64_t at)
{
	uint64_t next = entry(p, at)->next, first = at;

	if (next && next < p->plan_end)
		return next - at;
	/* Its first use in the pass stands for that in the one after it. */
	for (int n = 0; n < OCCURRENCES; n++) {
		uint64_t prev = entry(p, first)->prev;

		if (prev < p->plan_begin || !kept(p, prev))
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
static void plan(struct predictor *p, uint64_t uses)
{
	if (!kept(p, p->plan_at))
		begin_plan(p);
	for (; uses-- && p->plan_at < p->plan_end; p->plan_at++) {
		uint64_t stays = stay(p, p->plan_at);
		uint32_t s = score(p, entry(p, p->plan_at)->chunk, stays, p->plan_scale);

		p->occupied[(uint64_t)s * PREDICT_SCORES >> 32] += stays;
	}
	if (p->plan_at >= p->plan_end)
		end_plan(p);
}

static struct leaver *leaver(struct predictor *p, uint32_t n)
{
	return &p->leaving[(p->leaving_first + n) % PREDICT_LEAVING];
}

static bool stale(const struct predictor *p, const struct leaver *l)
{
	return !p->chunks[l->chunk].leaving || p->chunks[l->chunk].due != l->due;
}

/* Those that are used again, gone, or were to leave so long ago that they are due soon. */
static void drop_stale(struct predictor *p)
{
	while (p->leaving_count) {
		struct leaver *l = leaver(p, 0);

		if (!stale(p, l)) {
			if (p->head - l->use <= span(p) / LEAVING)
				break;
			set_leaving(p, &p->chunks[l->chunk], false);
		} else if (p->chunks[l->chunk].last == l->use) {
			/* The program has gone past its due without using it. */
			set_leaving(p, &p->chunks[l->chunk], false);
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
		uint32_t chunk = entry(p, at)->chunk;
		struct history *h = &p->chunks[chunk];

		if (score(p, chunk, h->due - p->cursor, p->scale) < p->bound ||
		    p->leaving_count == PREDICT_LEAVING)
			continue;
		set_leaving(p, h, true);
		marked++;
		*leaver(p, p->leaving_count++) =
			(struct leaver){ .use = at, .due = h->due, .chunk = chunk };
	}
	if (p->burst < marked)
		p->burst = marked;
}

void predict_slots(struct predictor *p, uint32_t slots)
{
	p->slots = slots;
}

void predict_left(struct predictor *p, uint32_t chunk, bool changed)
{
	p->chunks[chunk].changes = changed;
}

/*
 * Where the launch stood the last time, to go by the chunk of it that was not used for
 * longest; 0: not known, or the program is where it was. *jumped: it is elsewhere.
 */
static uint64_t find_launch(struct predictor *p, bool *jumped)
{
	uint64_t use = p->anchor ? entry(p, p->anchor)->prev : 0;
	uint64_t reach = stray(p), due, found = 0, place;

	*jumped = false;
	if (!kept(p, use))
		return 0;
	if (p->cursor) {
		due = p->chunks[entry(p, p->anchor)->chunk].due;
		/* The use that is due stands nearer to the cursor than the latest. */
		found = nearest(p, due && due < p->begun[0] ? due : use, p->cursor, reach);
	}
	/*
	 * Used so lately that it is there anyway, as activations are: says nothing of where
	 * the program is in a loop over more than fits.
	 */
	if (use >= p->begun[PREDICT_RECENT - 1] || use + p->slots > p->head)
		return found;
	if (found && (use <= found + reach || entry(p, use)->tag != p->tag)) {
		p->other = 0;
		return found;
	}
	/* It is lost, or can be followed through a later pass as well. */
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

void predict_end(struct predictor *p)
{
	bool jumped, first = !p->cursor;
	uint64_t found = find_launch(p, &jumped);

	if (found) {
		move_cursor(p, launch_end(p, found));
		p->scale = (ALL << 16) / (span(p) + 1);
		p->found = p->head;
	} else if (p->cursor && p->head - p->found > span(p) / LOST + p->slots) {
		lose_cursor(p);
	}
	if (jumped) {
		memset(p->ahead, 0, sizeof(p->ahead));
		begin_plan(p);
		if (first)
			guess_bound(p);
	}
	expire_arrivals(p);
	if (!p->cursor)
		return;
	plan(p, 2 * (p->head - p->begun[0]));
	drop_stale(p);
	mark(p);
}

/* ---- what was moved ---- */

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
		set_leaving(p, h, false);
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

/* ---- choices ---- */

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
	if (haste == HASTE_AHEAD && (predict_busy(leave) || leave == LEAVE_LAST))
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

	return kept(p, last) && last + p->slots > p->head && kept(p, entry(p, last)->prev);
}

/* Nobody expects them soon, or nothing is followed. */
static void weigh_unknown(const struct predictor *p, enum predict_place place, bool again,
			  struct choice *choice)
{
	uint64_t ranks = p->ranks[place];

	while (ranks && choice->leave < LEAVE_BUSY && choice->asked < UNKNOWN_ASKED) {
		int rank = 63 - __builtin_clzll(ranks);
		uint32_t next = p->unknown[place][rank];

		ranks &= ~(1ull << rank);
		for (; next; next = p->chunks[next - 1].older)
			if (!p->chunks[next - 1].unread && again == used_again(p, next - 1))
				weigh(p, choice, next - 1);
	}
}

/* From the one due last on. */
static void weigh_known(const struct predictor *p, enum predict_place place, bool unread,
			struct choice *choice)
{
	uint64_t enough = span(p) / LAST, least = p->head - p->begun[2];
	enum predict_leave good = choice->haste == HASTE_PATIENT ? LEAVE_BUSY : LEAVE_CLEAN;

	if (enough < least)
		enough = least;
	for (uint64_t at = p->head; p->cursor && at-- > p->cursor;) {
		uint32_t chunk = entry(p, at)->chunk;
		const struct history *h = &p->chunks[chunk];

		if (p->head - at > enough && choice->leave > LEAVE_LAST &&
		    (choice->leave >= good || p->head - at > FARTHER * enough))
			break;
		if (h->due == at && h->place == place && h->unread == unread)
			weigh(p, choice, chunk);
	}
}

/* Of those that are to leave the first, if it may and need not be waited for in vain. */
static uint32_t first_leaver(struct predictor *p, const struct choice *choice)
{
	drop_stale(p);
	for (uint32_t i = 0; i < p->leaving_count; i++) {
		const struct leaver *l = leaver(p, i);
		enum predict_leave leave;

		if (stale(p, l))
			continue;
		leave = choice->may_leave(choice->arg, l->chunk);
		if (leave <= LEAVE_LAST)
			continue;
		/* Those behind it were used later. */
		return predict_busy(leave) && choice->haste != HASTE_PATIENT ? PREDICT_NONE
									     : l->chunk;
	}
	return PREDICT_NONE;
}

uint32_t predict_victim(struct predictor *p, enum predict_place place, enum predict_haste haste,
			predict_may_leave may_leave, void *arg)
{
	struct choice choice = {
		.may_leave = may_leave, .arg = arg, .haste = haste, .chunk = PREDICT_NONE
	};

	weigh_unknown(p, place, false, &choice);
	if (place == PLACE_VRAM && p->cursor && choice.leave < LEAVE_NEW) {
		uint32_t first = first_leaver(p, &choice);

		if (first != PREDICT_NONE)
			return first;
		/* Looking ahead must not take from what stays. */
		if (haste == HASTE_AHEAD)
			return choice.chunk;
	}
	if (choice.leave < LEAVE_BUSY)
		weigh_known(p, place, false, &choice);
	if (choice.leave < LEAVE_NEW)
		weigh_unknown(p, place, true, &choice);
	if (place == PLACE_VRAM && p->cursor)
		p->forced++;
	if (choice.chunk != PREDICT_NONE || haste == HASTE_AHEAD)
		return choice.chunk;
	weigh_known(p, place, true, &choice);
	for (uint32_t i = 0; i < p->arrivals_count && choice.chunk == PREDICT_NONE; i++) {
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
static uint64_t lead(const struct predictor *p, enum predict_place place)
{
	uint64_t least = 2 * (p->head - p->begun[0]), most = span(p) / LEAD;

	if (most < least)
		most = least;
	return place == PLACE_RAM ? 2 * most : most;
}

/*
 * Is more of what is absent due behind this place than if it were spread evenly?
 * Then some has to come earlier, or the bus is idle before and too slow after.
 */
static bool crowded(const struct predictor *p, uint64_t at)
{
	if (p->head - at < span(p) / 2)
		return false;
	if (p->streaming > places_to_stream(p))
		return true;
	return p->absent > overflow(p) * (p->head - at) / span(p) + places_to_stream(p);
}

uint32_t predict_next(struct predictor *p, enum predict_place place, bool room,
		      predict_wanted wanted, void *arg)
{
	uint64_t at = p->ahead[place], end;

	/* What the program does now has nothing to do with what came next there. */
	if (!p->cursor || p->head - p->found > span(p) / STRAY)
		return PREDICT_NONE;
	if (at < p->cursor)
		at = p->cursor;
	end = p->cursor + lead(p, place);
	for (; at < p->head && (at < end || room || crowded(p, at)); at++) {
		p->ahead[place] = at;
		if ((room || p->chunks[entry(p, at)->chunk].doubt < DOUBTFUL) &&
		    wanted(arg, entry(p, at)->chunk))
			return entry(p, at)->chunk;
	}
	return PREDICT_NONE;
}
