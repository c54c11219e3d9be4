// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "replay.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <stdio.h>

#include "predict.h"

#define LOG_SIZE (1u << 20)
/* Launches that the driver takes before it makes the program wait. */
#define QUEUE 1024
/* How often an idle pager looks for something to do, seconds. */
#define POLL 20e-6
/* More free places than this share of all are for what is far ahead. */
#define ROOM_SHARE 32
/* Reads from disk under way at once. */
#define DISK_DEPTH 4

enum home { NOWHERE, VRAM, RAM, DISK };

struct chunk {
	uint8_t home;
	bool fetching; /* from disk to RAM, until `arrives` */
	bool changes; /* it was dirty when it left the last time; that is all a shim can know */
	bool dirty; /* in VRAM, and no copy below is like it */
	bool came; /* from below, once */
	bool copied; /* in VRAM, and a RAM slot still has its bytes */
	bool stored; /* and so has the disk */
	bool held;
	double arrives; /* at where it is */
	double used; /* its last use on the GPU ends */
};

struct simulation {
	const struct trace *trace;
	const struct machine *m;
	struct predictor predictor;
	struct chunk *chunks;
	double *slot_ready; /* free slots: when the last tenant is saved */
	uint32_t free_slots;
	uint32_t ram_used, ram_copies; /* slots of chunks at home there; of copies */
	uint32_t hand; /* goes round looking for copies to give up */
	uint32_t *fetching; /* chunks */
	uint32_t fetches;
	double now; /* the pager's time */
	double gpu, up, down, reads, writes; /* each is busy until */
	struct pass *pass;
};

static enum predict_leave may_leave(void *arg, uint32_t index)
{
	struct simulation *s = arg;
	const struct chunk *c = &s->chunks[index];
	bool busy;

	if (c->home != VRAM || c->held)
		return LEAVE_NOT;
	busy = c->used > s->now || c->arrives > s->now;
	if (c->changes)
		return busy ? LEAVE_BUSY_DIRTY : LEAVE_DIRTY;
	if (!c->copied && !c->stored)
		return busy ? LEAVE_BUSY_NEW : LEAVE_NEW;
	return busy ? LEAVE_BUSY : LEAVE_CLEAN;
}

static enum predict_leave may_spill(void *arg, uint32_t index)
{
	struct simulation *s = arg;
	const struct chunk *c = &s->chunks[index];

	if (c->home != RAM || c->fetching || c->held)
		return LEAVE_NOT;
	return c->stored ? LEAVE_CLEAN : LEAVE_DIRTY;
}

static void drop_copy(struct simulation *s, uint32_t index)
{
	s->ram_copies -= s->chunks[index].copied;
	s->chunks[index].copied = false;
}

/* A RAM slot; waits for the disk if one must be emptied first. */
static bool take_ram(struct simulation *s)
{
	while (s->ram_used + s->ram_copies >= s->m->ram) {
		uint32_t victim;

		if (s->ram_copies) {
			drop_copy(s, s->hand);
			s->hand = (s->hand + 1) % s->trace->chunk_count;
			continue;
		}
		victim = predict_victim(&s->predictor, PLACE_RAM, HASTE_HURRY, may_spill, s);
		if (victim == PREDICT_NONE)
			return false;
		if (!s->chunks[victim].stored) {
			s->writes = (s->writes > s->now ? s->writes : s->now) +
				    s->m->chunk / s->m->disk_write;
			s->now = s->writes + s->m->disk_latency;
			s->pass->spilled++;
		}
		s->chunks[victim].home = DISK;
		s->chunks[victim].stored = true;
		predict_moved(&s->predictor, victim, PLACE_AWAY, false);
		s->ram_used--;
	}
	s->ram_used++;
	return true;
}

/* Take a chunk out of VRAM. */
static bool sink(struct simulation *s, uint32_t index)
{
	struct chunk *c = &s->chunks[index];
	double ready;

	if (c->used > s->now)
		s->now = c->used;
	ready = s->now;
	c->home = RAM;
	/* The first time all are. */
	c->changes = c->dirty && c->came;
	predict_left(&s->predictor, index, c->changes);
	if (c->dirty || !(c->copied || c->stored)) {
		drop_copy(s, index);
		c->held = true;
		if (!take_ram(s))
			return false;
		c->held = false;
		s->down = (s->down > s->now ? s->down : s->now) + s->m->chunk / s->m->down;
		ready = s->down;
		c->stored = false;
		s->pass->out++;
	} else if (c->copied) {
		s->ram_copies--;
		s->ram_used++;
	} else {
		c->home = DISK;
	}
	c->copied = false;
	c->dirty = false;
	c->arrives = ready;
	predict_moved(&s->predictor, index, c->home == RAM ? PLACE_RAM : PLACE_AWAY, false);
	s->slot_ready[s->free_slots++] = ready;
	return true;
}

/* Bring a chunk whose bytes are in RAM, or nowhere, to VRAM. False: not now. */
static bool rise(struct simulation *s, uint32_t index, bool ahead)
{
	struct chunk *c = &s->chunks[index];
	double ready;

	if (!s->free_slots) {
		double piece = s->m->chunk / s->m->up;
		uint32_t victim = predict_victim(&s->predictor, PLACE_VRAM,
						 ahead			  ? HASTE_AHEAD
						 : s->up > s->now + piece ? HASTE_PATIENT
									  : HASTE_HURRY,
						 may_leave, s);

		/* Waiting is fine as long as the bus does not. */
		if (victim != PREDICT_NONE && s->chunks[victim].used > s->up - piece &&
		    s->up > s->now + piece) {
			s->now = s->up - piece;
			victim = predict_victim(&s->predictor, PLACE_VRAM, HASTE_HURRY, may_leave,
						s);
		}
		if (victim == PREDICT_NONE || !sink(s, victim))
			return false;
	}
	s->now += s->m->move;
	ready = s->slot_ready[--s->free_slots];
	if (c->home == RAM) {
		if (ready < c->arrives)
			ready = c->arrives;
		if (ready < s->now)
			ready = s->now;
		s->up = (s->up > ready ? s->up : ready) + s->m->chunk / s->m->up;
		ready = s->up;
		s->pass->in++;
		s->ram_used--;
		s->ram_copies++;
		c->copied = c->came = true;
	}
	c->home = VRAM;
	c->arrives = ready;
	predict_moved(&s->predictor, index, PLACE_VRAM, ahead);
	return true;
}

static bool start_fetch(struct simulation *s, uint32_t index)
{
	struct chunk *c = &s->chunks[index];

	if (!take_ram(s))
		return false;
	s->reads = (s->reads > s->now ? s->reads : s->now) + s->m->chunk / s->m->disk_read;
	c->home = RAM;
	c->fetching = true;
	c->arrives = s->reads + s->m->disk_latency;
	s->fetching[s->fetches++] = index;
	s->pass->fetched++;
	return true;
}

static void finish_fetches(struct simulation *s)
{
	for (uint32_t i = 0; i < s->fetches;) {
		struct chunk *c = &s->chunks[s->fetching[i]];

		if (c->fetching && c->arrives > s->now) {
			i++;
			continue;
		}
		if (c->fetching)
			predict_moved(&s->predictor, s->fetching[i], PLACE_RAM, false);
		c->fetching = false;
		s->fetching[i] = s->fetching[--s->fetches];
	}
}

static bool wanted_up(void *arg, uint32_t index)
{
	const struct chunk *c = &((struct simulation *)arg)->chunks[index];

	return c->home == RAM || c->home == DISK;
}

static bool wanted_from_disk(void *arg, uint32_t index)
{
	return ((struct simulation *)arg)->chunks[index].home == DISK;
}

/* One thing that nobody waits for. */
static bool look_ahead(struct simulation *s)
{
	uint32_t index;

	finish_fetches(s);
	if (s->fetches < DISK_DEPTH && s->fetches < s->m->ram / 4) {
		index = predict_next(&s->predictor, PLACE_RAM, false, wanted_from_disk, s);
		if (index != PREDICT_NONE && start_fetch(s, index))
			return true;
	}
	if (s->predictor.unread >= s->m->slots / 8 && s->free_slots <= s->m->slots / ROOM_SHARE)
		return false;
	index = predict_next(&s->predictor, PLACE_VRAM, s->free_slots > s->m->slots / ROOM_SHARE,
			     wanted_up, s);
	if (index == PREDICT_NONE || s->chunks[index].home != RAM || s->chunks[index].fetching)
		return false;
	return rise(s, index, true);
}

/* Bring in what the step names. False: it does not fit. */
static bool serve(struct simulation *s, const struct step *step)
{
	/* From disk all at once, as far as RAM goes. */
	for (uint32_t i = step->first; i < step->first + step->count; i++)
		if (s->chunks[s->trace->chunks[i]].home == DISK && s->fetches < s->m->ram / 2)
			start_fetch(s, s->trace->chunks[i]);
	for (uint32_t i = step->first; i < step->first + step->count; i++) {
		uint32_t index = s->trace->chunks[i];
		struct chunk *c = &s->chunks[index];

		if (c->home == DISK && !start_fetch(s, index))
			return false;
		if (c->fetching && s->now < c->arrives)
			s->now = c->arrives;
		finish_fetches(s);
		if (c->home != VRAM && !rise(s, index, false))
			return false;
	}
	return true;
}

static void forget(struct simulation *s, uint32_t index)
{
	struct chunk *c = &s->chunks[index];

	drop_copy(s, index);
	if (c->home == VRAM)
		s->slot_ready[s->free_slots++] = c->arrives > c->used ? c->arrives : c->used;
	else if (c->home == RAM)
		s->ram_used--;
	*c = (struct chunk){ 0 };
	predict_forget(&s->predictor, index);
}

/* The contents will be overwritten whole: they need not come back. */
static void overwrite(struct simulation *s, uint32_t index)
{
	struct chunk *c = &s->chunks[index];

	if (c->home == VRAM || c->fetching)
		return;
	s->ram_used -= c->home == RAM;
	c->home = NOWHERE;
	c->stored = false;
	predict_moved(&s->predictor, index, PLACE_AWAY, false);
}

static uint32_t run(struct simulation *s, struct pass *passes)
{
	const struct trace *trace = s->trace;
	double *queue = calloc(QUEUE, sizeof(*queue));
	double program = 0, began = 0;
	uint32_t at = 0, failed = 0;

	for (; at < trace->step_count && !failed; at++) {
		const struct step *step = &trace->steps[at];
		bool absent = false;
		double start;

		if (step->waits && program < s->gpu)
			program = s->gpu;
		if (program < queue[at % QUEUE])
			program = queue[at % QUEUE];
		if (s->pass != &passes[step->pass]) {
			s->pass->seconds += program - began;
			began = program;
			s->pass = &passes[step->pass];
			if (getenv("DBG"))
				fprintf(stderr,
					"pass %u head %lu cursor %lu span %lu known %u unread %u "
					"other %lu free %u now %f gpu %f ahead %lu\n",
					step->pass, s->predictor.head, s->predictor.cursor,
					s->predictor.head - s->predictor.cursor, s->predictor.known,
					s->predictor.unread, s->predictor.other, s->free_slots,
					s->now, s->gpu, s->predictor.ahead[2]);
		}
		/* What the pager does meanwhile. */
		while (s->m->look_ahead && s->now < program)
			if (!look_ahead(s))
				s->now += POLL;
		if (s->now < program)
			s->now = program;
		if (step->frees) {
			for (uint32_t i = step->first; i < step->first + step->count; i++)
				forget(s, trace->chunks[i]);
			continue;
		}
		predict_begin(&s->predictor, step->tag);
		for (uint32_t i = step->first; i < step->first + step->count; i++) {
			if (trace->uses[i] == USE_OVERWRITES)
				overwrite(s, trace->chunks[i]);
			predict_use(&s->predictor, trace->chunks[i]);
			s->chunks[trace->chunks[i]].held = true;
			absent = absent || s->chunks[trace->chunks[i]].home != VRAM;
		}
		predict_end(&s->predictor);
		if (absent) {
			if (!serve(s, step))
				failed = at + 1;
			program = s->now;
		}
		program += s->m->launch;
		start = s->gpu > program ? s->gpu : program;
		for (uint32_t i = step->first; i < step->first + step->count; i++)
			if (start < s->chunks[trace->chunks[i]].arrives)
				start = s->chunks[trace->chunks[i]].arrives;
		s->pass->stalled += start - s->gpu;
		s->pass->compute += step->compute;
		s->gpu = queue[at % QUEUE] = start + step->compute;
		for (uint32_t i = step->first; i < step->first + step->count; i++) {
			struct chunk *c = &s->chunks[trace->chunks[i]];

			c->held = false;
			c->used = s->gpu;
			if (trace->uses[i] != USE_READS) {
				c->dirty = true;
				c->stored = false;
				drop_copy(s, trace->chunks[i]);
			}
		}
	}
	s->pass->seconds += (program > s->gpu ? program : s->gpu) - began;
	free(queue);
	return failed;
}

static void predictor_init(struct predictor *p, uint32_t chunks)
{
	predict_init(p, calloc(chunks + 1, sizeof(struct history)),
		     calloc(LOG_SIZE, sizeof(struct past)), LOG_SIZE);
}

uint32_t replay_run(const struct trace *trace, const struct machine *machine, struct pass *passes)
{
	struct simulation *s = calloc(1, sizeof(*s));
	uint32_t failed;

	s->trace = trace;
	s->m = machine;
	s->chunks = calloc(trace->chunk_count + 1, sizeof(*s->chunks));
	s->fetching = calloc(trace->chunk_count + 1, sizeof(*s->fetching));
	s->slot_ready = calloc(machine->slots, sizeof(*s->slot_ready));
	s->free_slots = machine->slots;
	s->pass = passes;
	predictor_init(&s->predictor, trace->chunk_count);
	predict_slots(&s->predictor, machine->slots);
	failed = run(s, passes);
	free(s->predictor.chunks);
	free(s->predictor.log);
	free(s->slot_ready);
	free(s->fetching);
	free(s->chunks);
	free(s);
	return failed;
}

static double cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

void replay_cost(const struct trace *trace, uint32_t slots, double *step_ns, double *use_ns)
{
	struct predictor *p = malloc(sizeof(*p));
	uint64_t uses = 0, steps = 0;
	double began = 0, ns;

	predictor_init(p, trace->chunk_count);
	predict_slots(p, slots);
	/* Twice: the first time the log's pages are new. */
	for (int round = 0; round < 2; round++) {
		uses = steps = 0;
		began = cpu_ns();
		for (uint32_t s = 0; s < trace->step_count; s++) {
			const struct step *step = &trace->steps[s];

			if (step->frees)
				continue;
			predict_begin(p, step->tag);
			for (uint32_t i = step->first; i < step->first + step->count; i++)
				predict_use(p, trace->chunks[i]);
			predict_end(p);
			uses += step->count;
			steps++;
		}
	}
	ns = cpu_ns() - began;
	*step_ns = steps ? ns / (double)steps : 0;
	*use_ns = uses ? ns / (double)uses : 0;
	free(p->chunks);
	free(p->log);
	free(p);
}
