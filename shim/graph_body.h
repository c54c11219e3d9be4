/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The graphs that conditional nodes run. The driver tells them when such a node is made,
 * and never again.
 */
#ifndef GREENBOOST_GRAPH_BODY_H
#define GREENBOOST_GRAPH_BODY_H

#include <stdbool.h>
#include <stdint.h>

#include "driver.h"

/* A node of the graph was made. False: no memory. */
bool graph_bodies_note(CUgraph graph, CUgraphNode node, const CUDA_CONDITIONAL_NODE_PARAMS *params);

/* Those of a node, to be freed; NULL and 0: it is not known. */
CUgraph *graph_bodies(CUgraphNode node, uint32_t *count);

#endif
