// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What cannot be avoided. Reads: Belady's choice, with the future known, brings in
 * the fewest chunks. Writes: of the times from a change of a chunk to the last use
 * before the next one, in which it stays in VRAM or has to be written, the fewest that
 * must be interrupted. Chunks that are not changed take room only while they are used, and
 * one that was interrupted none at all until it is changed again, as who chooses otherwise
 * uses it elsewhere: so this is at most what any policy writes, and the one interrupted is
 * the one whose time ends last. The two need not be reachable at once. Time: see least_time().
 */
#include "replay.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NEVER UINT32_MAX

/* A heap of chunks, the one used last on top; entries that are out of date are dropped late. */
struct heap {
	struct later {
		uint32_t next, chunk;
	} * entries;
	size_t count;
};

static void push(struct heap *heap, struct later entry)
{
	size_t at = heap->count++;

	while (at && heap->entries[(at - 1) / 2].next < entry.next) {
		heap->entries[at] = heap->entries[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	heap->entries[at] = entry;
}

static struct later pop(struct heap *heap)
{
	struct later top = heap->entries[0], last = heap->entries[--heap->count];
	size_t at = 0, child;

	while ((child = 2 * at + 1) < heap->count) {
		if (child + 1 < heap->count &&
		    heap->entries[child + 1].next > heap->entries[child].next)
			child++;
		if (heap->entries[child].next <= last.next)
			break;
		heap->entries[at] = heap->entries[child];
		at = child;
	}
	heap->entries[at] = last;
	return top;
}

enum counted { READS, WRITES };

/*
 * For each use the step of the chunk's next one that needs its bytes (READS), or of the
 * last one that does before they are changed again (WRITES). NEVER: none does.
 */
static uint32_t *next_needs(const struct trace *trace, enum counted what)
{
	size_t uses = 0;
	uint32_t *next, *latest;

	for (uint32_t s = 0; s < trace->step_count; s++)
		uses += trace->steps[s].count;
	next = malloc((uses + 1) * sizeof(*next));
	latest = malloc((trace->chunk_count + 1) * sizeof(*latest));
	memset(latest, 0xff, trace->chunk_count * sizeof(*latest));
	for (uint32_t s = trace->step_count; s-- > 0;) {
		const struct step *step = &trace->steps[s];

		for (uint32_t i = step->first; i < step->first + step->count; i++) {
			uint32_t *needed = &latest[trace->chunks[i]];

			next[i] = *needed;
			if (step->frees || trace->uses[i] == USE_OVERWRITES)
				*needed = NEVER;
			else if (what == READS || trace->uses[i] == USE_CHANGES || *needed == NEVER)
				*needed = s;
		}
	}
	free(latest);
	return next;
}

struct entry {
	uint32_t next; /* of next_needs(); of one that is kept */
	uint32_t used; /* step, plus one */
	bool kept, exists;
	bool interrupted; /* WRITES */
};

/*
 * Chunks that must come in (READS) or be written (WRITES) a pass with room for so
 * many. counts has a place a pass, `stride` bytes apart.
 */
static uint32_t minimum(const struct trace *trace, uint32_t room, enum counted what,
			const uint32_t *next, uint64_t *counts, size_t stride)
{
	struct entry *all = calloc(trace->chunk_count + 1, sizeof(*all));
	struct heap heap = { 0 };
	uint32_t kept = 0, failed = 0;
	size_t uses = 1;

	for (uint32_t s = 0; s < trace->step_count; s++)
		uses += trace->steps[s].count;
	heap.entries = malloc(uses * sizeof(*heap.entries));

	for (uint32_t s = 0; s < trace->step_count && !failed; s++) {
		const struct step *step = &trace->steps[s];
		uint64_t *count = (uint64_t *)((char *)counts + step->pass * stride);
		uint32_t present = kept;

		if (step->count > room && !step->frees)
			failed = s + 1;
		for (uint32_t i = step->first; i < step->first + step->count; i++) {
			struct entry *e = &all[trace->chunks[i]];

			if (step->frees) {
				kept -= e->kept;
				*e = (struct entry){ 0 };
				continue;
			}
			if (what == WRITES && trace->uses[i] == USE_READS) {
				present += !e->kept && !e->interrupted;
				continue;
			}
			e->used = s + 1;
			e->interrupted = false;
			present += !e->kept;
		}
		if (step->frees)
			continue;
		while (present > room && heap.count) {
			struct later last = pop(&heap);
			struct entry *e = &all[last.chunk];

			if (!e->kept || e->next != last.next || e->used == s + 1)
				continue; /* out of date, or pushed anew below */
			e->kept = false;
			kept--;
			present--;
			if (what == WRITES) {
				e->interrupted = true;
				++*count;
			}
		}
		for (uint32_t i = step->first; i < step->first + step->count; i++) {
			uint32_t c = trace->chunks[i];
			struct entry *e = &all[c];
			bool whole = trace->uses[i] == USE_OVERWRITES;

			if (what == READS && !e->kept && e->exists && !whole)
				++*count;
			kept -= e->kept;
			e->exists = true;
			/* What nobody needs again takes no room; what is unchanged need not be
			 * written. */
			e->kept = next[i] != NEVER &&
				  (what == READS || e->kept || trace->uses[i] != USE_READS);
			e->next = next[i];
			kept += e->kept;
			if (e->kept)
				push(&heap, (struct later){ next[i], c });
		}
	}
	free(heap.entries);
	free(all);
	return failed;
}

/* Has the chunk of each use been used before, and not been freed since? */
static uint8_t *existing(const struct trace *trace, size_t uses)
{
	uint8_t *before = malloc(uses + 1), *exists = calloc(trace->chunk_count + 1, 1);

	for (uint32_t s = 0; s < trace->step_count; s++) {
		const struct step *step = &trace->steps[s];

		for (uint32_t i = step->first; i < step->first + step->count; i++) {
			before[i] = exists[trace->chunks[i]];
			exists[trace->chunks[i]] = !step->frees;
		}
	}
	free(exists);
	return before;
}

/*
 * The least time of a pass, which is steps `from` to `to` - 1 and begins and ends with
 * the program waiting for the GPU. Its last steps from any one on begin at the earliest
 * when they would if nothing had to be moved, as of the program's own time; VRAM holds
 * as much of what they need by then as fits, and they end at the earliest when they are
 * computed, and when the rest has come. So a pause of the program cannot hide more
 * copying than VRAM has room for, and in a loop over more than fits it hides none.
 */
static double least_time(const struct trace *trace, const struct machine *m, uint32_t from,
			 uint32_t to, const uint8_t *before, uint8_t *needed)
{
	double *begins = malloc((to - from + 1) * sizeof(*begins));
	double program = 0, gpu = 0, compute = 0, least;
	uint64_t missing = 0;

	for (uint32_t s = from; s < to; s++) {
		const struct step *step = &trace->steps[s];

		if (step->waits && program < gpu)
			program = gpu;
		program += step->host;
		begins[s - from] = program;
		gpu = (gpu > program ? gpu : program) + step->compute;
	}
	least = gpu > program ? gpu : program;
	for (uint32_t s = to; s-- > from;) {
		const struct step *step = &trace->steps[s];
		double end = begins[s - from];

		for (uint32_t i = step->first; i < step->first + step->count; i++) {
			uint8_t *need = &needed[trace->chunks[i]];

			missing -= *need;
			*need = before[i] && !step->frees && trace->uses[i] != USE_OVERWRITES;
			missing += *need;
		}
		compute += step->compute;
		if (least < end + compute)
			least = end + compute;
		if (missing > m->slots)
			end += (double)(missing - m->slots) * m->chunk / m->up;
		if (least < end)
			least = end;
	}
	for (uint32_t s = from; s < to; s++)
		for (uint32_t i = 0; i < trace->steps[s].count; i++)
			needed[trace->chunks[trace->steps[s].first + i]] = 0;
	free(begins);
	return least;
}

static void least_times(const struct trace *trace, const struct machine *m, struct pass *passes)
{
	size_t uses = 0;
	uint8_t *before, *needed = calloc(trace->chunk_count + 1, 1);

	for (uint32_t s = 0; s < trace->step_count; s++)
		uses += trace->steps[s].count;
	before = existing(trace, uses);
	for (uint32_t from = 0, to; from < trace->step_count; from = to) {
		struct pass *pass = &passes[trace->steps[from].pass];
		double moving[] = { (double)pass->in_bound * m->chunk / m->up,
				    (double)pass->out_bound * m->chunk / m->down,
				    (double)pass->fetched_bound * m->chunk / m->disk_read };

		for (to = from;
		     to < trace->step_count && trace->steps[to].pass == trace->steps[from].pass;)
			to++;
		pass->least = least_time(trace, m, from, to, before, needed);
		for (int i = 0; i < 3; i++)
			if (pass->least < moving[i])
				pass->least = moving[i];
	}
	free(before);
	free(needed);
}

uint32_t replay_bound(const struct trace *trace, const struct machine *machine, struct pass *passes)
{
	uint32_t *reads = next_needs(trace, READS), *writes = next_needs(trace, WRITES);
	uint32_t failed;

	failed = minimum(trace, machine->slots, READS, reads, &passes->in_bound, sizeof(*passes));
	if (!failed)
		failed = minimum(trace, machine->slots, WRITES, writes, &passes->out_bound,
				 sizeof(*passes));
	if (!failed)
		failed = minimum(trace, machine->slots + machine->ram, READS, reads,
				 &passes->fetched_bound, sizeof(*passes));
	free(reads);
	free(writes);
	if (!failed)
		least_times(trace, machine, passes);
	return failed;
}
