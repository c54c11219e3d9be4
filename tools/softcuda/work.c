// SPDX-License-Identifier: GPL-2.0-or-later
#include "work.h"

#include <stdlib.h>

/* initial-exec: reading it in a signal handler must not allocate. */
static __thread const struct work *current __attribute__((tls_model("initial-exec")));

void work_init(struct work *work, int type, const char *name,
	       void (*run)(struct work *work, const struct place *place),
	       void (*release)(struct work *work))
{
	atomic_init(&work->refs, 1);
	work->type = type;
	work->name = name;
	work->run = run;
	work->release = release;
}

struct work *work_get(struct work *work)
{
	atomic_fetch_add_explicit(&work->refs, 1, memory_order_relaxed);
	return work;
}

void work_put(struct work *work)
{
	if (work && atomic_fetch_sub(&work->refs, 1) == 1)
		work->release(work);
}

void work_run(struct work *work, const struct place *place)
{
	const struct work *outer = current;

	current = work;
	work->run(work, place);
	current = outer;
}

const struct work *work_current(void)
{
	return current;
}

struct host_work {
	struct work work;
	CUhostFn fn;
	void *user_data;
};

static void host_run(struct work *work, const struct place *place)
{
	struct host_work *host = (struct host_work *)work;

	(void)place;
	host->fn(host->user_data);
}

static void plain_release(struct work *work)
{
	free(work);
}

struct work *work_host(CUhostFn fn, void *user_data)
{
	struct host_work *host = malloc(sizeof *host);

	if (!host)
		return NULL;
	work_init(&host->work, CU_GRAPH_NODE_TYPE_HOST, "host function", host_run, plain_release);
	host->fn = fn;
	host->user_data = user_data;
	return &host->work;
}

CUDA_HOST_NODE_PARAMS work_host_params(const struct work *work)
{
	const struct host_work *host = (const struct host_work *)work;

	return (CUDA_HOST_NODE_PARAMS){ host->fn, host->user_data };
}

static void empty_run(struct work *work, const struct place *place)
{
	(void)work;
	(void)place;
}

struct work *work_empty(int type)
{
	struct work *work = malloc(sizeof *work);

	if (work)
		work_init(work, type, "nothing", empty_run, plain_release);
	return work;
}

struct sequence {
	struct work work;
	size_t count;
	struct work *items[];
};

static void sequence_run(struct work *work, const struct place *place)
{
	struct sequence *sequence = (struct sequence *)work;

	for (size_t i = 0; i < sequence->count; i++)
		work_run(sequence->items[i], place);
}

static void sequence_release(struct work *work)
{
	struct sequence *sequence = (struct sequence *)work;

	for (size_t i = 0; i < sequence->count; i++)
		work_put(sequence->items[i]);
	free(sequence);
}

struct work *work_sequence(struct work *const *items, size_t count)
{
	struct sequence *sequence = malloc(sizeof *sequence + count * sizeof(struct work *));

	if (!sequence)
		return NULL;
	work_init(&sequence->work, CU_GRAPH_NODE_TYPE_GRAPH, "graph", sequence_run,
		  sequence_release);
	sequence->count = count;
	for (size_t i = 0; i < count; i++)
		sequence->items[i] = work_get(items[i]);
	return &sequence->work;
}
