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
	struct work *work;
	CUgraphNode *deps;
	size_t dep_count;
	bool mark; /* for whoever walks the graph */
};

struct CUgraph_st {
	enum kind kind;
	CUgraphNode first, *tail;
	size_t count;
};

CUgraph graph_create(void);
void graph_destroy(CUgraph graph);

/*
 * A node that comes after deps, which belong to the graph. Takes over the
 * reference of work, also when it fails; NULL work means no memory.
 */
CUresult graph_add(CUgraph graph, struct work *work, const CUgraphNode *deps, size_t count,
		   CUgraphNode *node);

/* The work of a node of any type, and a node of one type as one of any; bytes of it are given. */
CUresult graph_work_of(const CUgraphNodeParams *params, struct work **work);
CUgraphNodeParams graph_params(int type, const void *params, size_t bytes);

/* Whether all of deps are nodes of the graph. */
bool graph_has(CUgraph graph, const CUgraphNode *deps, size_t count);

/* Makes *deps, which is allocated, a copy of nodes. */
bool deps_set(CUgraphNode **deps, size_t *count, const CUgraphNode *nodes, size_t n);

/* Adds those of nodes that *deps lacks. */
bool deps_merge(CUgraphNode **deps, size_t *count, const CUgraphNode *nodes, size_t n);

#endif
