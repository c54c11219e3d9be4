/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The nodes of an executable graph as the shim keeps them: what its launches will run,
 * in an order that respects the edges. Copies, since programs destroy a graph once it
 * is instantiated. No locks: whoever owns them sees to that.
 */
#ifndef GREENBOOST_GRAPH_NODES_H
#define GREENBOOST_GRAPH_NODES_H

#include <stdbool.h>

#include "launch.h"
#include "params.h"

#define ATTRIBUTES_MOST 4

/* What the parameters of a kernel's node are kept as; other types' as the driver tells them. */
struct kernel {
	CUDA_KERNEL_NODE_PARAMS node; /* whose parameters are: */
	struct params *params;
	CUlaunchAttribute attributes[ATTRIBUTES_MOST];
	unsigned int attribute_count;
};

static inline CUfunction function_of_kernel(const CUDA_KERNEL_NODE_PARAMS *params)
{
	return params->func ? params->func : (CUfunction)params->kern;
}

struct node {
	CUgraphNode handle; /* by which the program may change it */
	size_t place; /* as the driver tells the graph's nodes */
	int type; /* CU_GRAPH_NODE_TYPE_* */
	bool disabled;
	bool unseen; /* a device may change what it names */
	const char *bound; /* what it has that a stream cannot be given; NULL: it can be issued */
	bool untold; /* nor can a kernel of parameters that the driver does not tell */
	void *params; /* by type; NULL: none, or they cannot be read */
	struct nodes *bodies; /* of a child graph: one; of a conditional node: all */
	uint32_t body_count;
	uint32_t name_first, name_count; /* of what is found in its parameters */
};

struct nodes {
	struct node *all;
	size_t count, room;
	const char *bound; /* as a node's, of all of them */
	size_t hint; /* where the last one was found: programs change one after the other */
};

void nodes_free(struct nodes *nodes);

/*
 * The same graph's, read anew or updated from another: those that come in place of old
 * ones are known by the handles of these. Frees the old ones.
 */
void nodes_replace(struct nodes *nodes, struct nodes *by);

/* NULL: there is none of this handle, also in bodies. */
struct node *nodes_find(struct nodes *nodes, CUgraphNode handle);

/* A new one at the end; NULL: no memory. */
struct node *nodes_add(struct nodes *nodes, CUgraphNode handle, int type);

/*
 * New parameters for a node, those of its type. On error it keeps what it had.
 * CUDA_ERROR_OUT_OF_MEMORY: of the host's.
 */
CUresult node_set(struct node *node, const void *params);

/* What some node has that a stream cannot be given, or NULL. */
const char *nodes_bound(const struct nodes *nodes);

/* Whether a device may change what some node names. */
bool nodes_unseen(const struct nodes *nodes);

/* Whether some node may wait for a value that the program has yet to write. */
bool nodes_await(const struct nodes *nodes);

/*
 * Every address in [low, high) that kernels name, one node after the other; *count is
 * how many were found before, and those of a node are numbered on from it.
 */
void nodes_scan(struct nodes *nodes, uint64_t low, uint64_t high, params_found found, void *arg,
		const uint32_t *count);

/* What nodes that copy, set, write and wait name. */
typedef void (*range_found)(void *arg, struct extent range);
void nodes_ranges(const struct nodes *nodes, range_found found, void *arg);

/* graph_read.c */

/* Zeroed at first. CUDA_ERROR_OUT_OF_MEMORY: of the host's; there is nothing to free then. */
CUresult nodes_read(struct nodes *nodes, CUgraph graph);

/* graph_issue.c */

/* Is there room for each kernel by itself? names: what nodes_scan() found, by number. */
bool nodes_can_fit(const struct nodes *nodes, struct device *device, const uint64_t *names);

/* Whether some node copies from memory of the host for which the stream must be waited for. */
bool nodes_read_early(const struct nodes *nodes);

/* Give the nodes to the stream, one after the other. */
CUresult nodes_issue(const struct nodes *nodes, struct device *device, const uint64_t *names,
		     CUstream stream, unsigned int variant);

#endif
