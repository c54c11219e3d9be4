// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "replay.h"

#include <stdlib.h>
#include <time.h>

#include "machine.h"

/* Launches that the driver takes before it makes the program wait. */
#define QUEUE 1024

struct run {
	const struct trace *trace;
	struct device *device;
	struct allocation **homes; /* of each chunk: every one is an allocation */
	struct span *spans;
	double queue[QUEUE]; /* when launches are over */
};

static struct allocation *home(struct run *run, uint32_t index)
{
	struct device *device = run->device;
	uint64_t base = (uint64_t)index * device->chunk + device->chunk;

	if (!run->homes[index]) {
		run->homes[index] = alloc_map_add(&device->map, base, device->chunk, index, 1);
		device->chunks[index] =
			(struct chunk){ .address = base, .slot = NO_SLOT, .ram = NO_RAM };
		device->committed++;
	}
	return run->homes[index];
}

static void end(struct run *run, const struct step *step)
{
	for (uint32_t i = step->first; i < step->first + step->count; i++) {
		uint32_t index = run->trace->chunks[i];

		if (!run->homes[index])
			continue;
		machine_end(run->homes[index]);
		run->device->committed--;
		run->homes[index] = NULL;
	}
}

/* False: it does not fit. */
static bool launch(struct run *run, const struct step *step, struct pass *pass)
{
	struct hold hold = { .where = HOLD_VRAM, .tag = step->tag };
	double before, start;

	for (uint32_t i = 0; i < step->count; i++) {
		uint32_t at = step->first + i;

		run->spans[i] = (struct span){
			.allocation = home(run, run->trace->chunks[at]),
			.end = run->device->chunk,
			.overwritten = run->trace->uses[at] == USE_OVERWRITES,
		};
	}
	before = machine_stream_end();
	if (step->count && residency_hold(run->device, run->spans, step->count, &hold))
		return false;
	if (step->count)
		residency_begin(&hold, machine_stream(), 0);
	start = machine_compute(step->compute);
	pass->stalled += start - before;
	pass->compute += step->compute;
	for (uint32_t i = step->first; i < step->first + step->count; i++)
		if (run->trace->uses[i] != USE_READS)
			machine_change(run->trace->chunks[i]);
	if (step->count)
		residency_release(run->device, &hold, machine_stream(), 0);
	return true;
}

struct moved {
	uint64_t in, out, fetched, spilled, ahead;
};

static struct moved moved(const struct device *device)
{
	const uint64_t *c = device->state->counters;

	return (struct moved){
		c[COUNTER_H2D_BYTES] / device->chunk,
		c[COUNTER_D2H_BYTES] / device->chunk,
		c[COUNTER_FETCH_BYTES] / device->chunk,
		c[COUNTER_SPILL_BYTES] / device->chunk,
		c[COUNTER_PREFETCHED],
	};
}

static void end_pass(struct pass *pass, double seconds, struct moved from, struct moved to)
{
	pass->seconds += seconds;
	pass->in += to.in - from.in;
	pass->out += to.out - from.out;
	pass->fetched += to.fetched - from.fetched;
	pass->spilled += to.spilled - from.spilled;
	pass->ahead += to.ahead - from.ahead;
}

/* The program goes by itself, with everything it waits for. */
static uint32_t run_steps(struct run *run, struct pass *passes)
{
	const struct trace *trace = run->trace;
	struct moved from = moved(run->device);
	struct pass *pass = passes;
	uint32_t at = 0, failed = 0;
	double began = 0;

	residency_begin_paging(run->device);
	for (; at < trace->step_count && !failed; at++) {
		const struct step *step = &trace->steps[at];
		double *queued = &run->queue[at % QUEUE];

		if (step->waits)
			machine_synchronize();
		if (*queued > machine_time())
			machine_pass_time(*queued - machine_time());
		if (pass != &passes[step->pass]) {
			end_pass(pass, machine_time() - began, from, moved(run->device));
			from = moved(run->device);
			began = machine_time();
			pass = &passes[step->pass];
		}
		machine_pass_time(step->host);
		if (step->frees)
			end(run, step);
		else if (!launch(run, step, pass))
			failed = at + 1;
		*queued = machine_stream_end();
	}
	machine_synchronize();
	end_pass(pass, machine_time() - began, from, moved(run->device));
	return failed;
}

uint32_t replay_run(const struct trace *trace, const struct machine *machine, struct pass *passes)
{
	struct run *run = calloc(1, sizeof(*run));
	uint32_t failed, most = 0;

	for (uint32_t i = 0; i < trace->step_count; i++)
		if (trace->steps[i].count > most)
			most = trace->steps[i].count;
	run->trace = trace;
	run->device = machine_new(machine, trace->chunk_count);
	run->homes = calloc(trace->chunk_count + 1, sizeof(struct allocation *));
	run->spans = calloc(most + 1, sizeof(*run->spans));
	failed = run_steps(run, passes);
	machine_free(run->device);
	free(run->homes);
	free(run->spans);
	free(run);
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

	predict_init(p, calloc(trace->chunk_count + 1, sizeof(struct history)),
		     calloc(REPLAY_USES, sizeof(struct past)), REPLAY_USES);
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
