// SPDX-License-Identifier: GPL-2.0-or-later
#include "graph_body.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "fork.h"

struct conditional {
	struct conditional *next;
	CUgraph graph; /* that it is a node of */
	CUgraphNode node;
	uint32_t count;
	CUgraph bodies[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct conditional *conditionals;

/* In the lock. A graph's bodies end with it, and theirs. */
static void forget(CUgraph graph, CUgraphNode node)
{
	struct conditional **link = &conditionals, *c;

	while ((c = *link)) {
		if (graph ? c->graph != graph : c->node != node) {
			link = &c->next;
			continue;
		}
		*link = c->next;
		for (uint32_t i = 0; i < c->count; i++)
			forget(c->bodies[i], NULL);
		free(c);
		link = &conditionals;
	}
}

bool graph_bodies_note(CUgraph graph, CUgraphNode node, const CUDA_CONDITIONAL_NODE_PARAMS *params)
{
	struct conditional *c = malloc(sizeof(*c) + params->size * sizeof(*c->bodies));

	if (!c)
		return false;
	*c = (struct conditional){ .graph = graph, .node = node, .count = params->size };
	memcpy(c->bodies, params->phGraph_out, params->size * sizeof(*c->bodies));
	pthread_mutex_lock(&lock);
	forget(NULL, node);
	c->next = conditionals;
	conditionals = c;
	pthread_mutex_unlock(&lock);
	return true;
}

CUgraph *graph_bodies(CUgraphNode node, uint32_t *count)
{
	const struct conditional *c;
	CUgraph *bodies = NULL;

	*count = 0;
	pthread_mutex_lock(&lock);
	for (c = conditionals; c && c->node != node; c = c->next)
		;
	if (c)
		bodies = malloc((c->count + 1) * sizeof(*bodies));
	if (bodies) {
		*count = c->count;
		memcpy(bodies, c->bodies, c->count * sizeof(*bodies));
	}
	pthread_mutex_unlock(&lock);
	return bodies;
}

CUresult hook_cuGraphDestroy(unsigned int variant, CUgraph graph)
{
	(void)variant;
	pthread_mutex_lock(&lock);
	if (graph)
		forget(graph, NULL);
	pthread_mutex_unlock(&lock);
	return driver.cuGraphDestroy(graph);
}

CUresult hook_cuGraphDestroyNode(unsigned int variant, CUgraphNode node)
{
	(void)variant;
	pthread_mutex_lock(&lock);
	if (node)
		forget(NULL, node);
	pthread_mutex_unlock(&lock);
	return driver.cuGraphDestroyNode(node);
}

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_mutex_init(&lock, NULL);
	conditionals = NULL;
}

IN_EVERY_CHILD(in_child)
