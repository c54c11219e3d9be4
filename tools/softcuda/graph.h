/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Graphs: work in an order. */
#ifndef SOFTCUDA_GRAPH_H
#define SOFTCUDA_GRAPH_H

#include "handle.h"
#include "work.h"

/* Nodes are in the order of their making, which respects dependencies unless some came later. */
struct CUgraphNode_st {
	enum kind kind;
	CUgraph graph;
	CUgraphNode next;
	struct work *work; /* of a child graph or a conditional node: nothing */
	CUgraphNode *deps;
	size_t dep_count;
	CUevent event; /* of a node that records it or waits for it */
	CUgraph *bodies; /* of a child graph: one; of a conditional node: all */
	unsigned int body_count;
	unsigned int choice; /* of a conditional node: which body runs; of none: body_count */
	bool disabled; /* in an executable graph */
	bool mark; /* for whoever walks the graph */
	CUgraphNode twin; /* in a clone: what it was cloned from, never followed; for whoever clones
			     the graph: the clone */
};

struct CUgraph_st {
	enum kind kind;
	CUgraphNode first, *tail;
	size_t count;
};

CUgraph graph_create(void);
void graph_destroy(CUgraph graph);

/* With all in it. NULL: no memory. */
CUgraph graph_clone(CUgraph graph);

/*
 * The nodes in an order that respects their dependencies, as near to that of their
 * making as can be; to be freed. NULL: no memory, or they depend on each other in a circle.
 */
CUgraphNode *graph_order(CUgraph graph);

/* What was cloned from that node, also in bodies; NULL: nothing. */
CUgraphNode graph_twin(CUgraph clone, CUgraphNode node);

/*
 * A node that comes after deps, which belong to the graph. Takes over the
 * reference of work, also when it fails; NULL work means no memory.
 */
CUresult graph_add(CUgraph graph, struct work *work, const CUgraphNode *deps, size_t count,
		   CUgraphNode *node);

/* Whether all of deps are nodes of the graph. */
bool graph_has(CUgraph graph, const CUgraphNode *deps, size_t count);

/* Makes *deps, which is allocated, a copy of nodes. */
bool deps_set(CUgraphNode **deps, size_t *count, const CUgraphNode *nodes, size_t n);

/* Adds those of nodes that *deps lacks. */
bool deps_merge(CUgraphNode **deps, size_t *count, const CUgraphNode *nodes, size_t n);

/* graphnode.c */

/* New parameters for a node, of its type. */
CUresult graph_set_params(CUgraphNode node, const CUgraphNodeParams *params);

/* The work of a node of any type, and a node of one type as one of any; bytes of it are given. */
CUresult graph_work_of(const CUgraphNodeParams *params, struct work **work);
CUgraphNodeParams graph_params(int type, const void *params, size_t bytes);

#endif
