/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Nodes of graphs, made by hand. */
#ifndef GREENBOOST_GRAPH_H
#define GREENBOOST_GRAPH_H

#include "driver.h"

/* What a node of these parameters copies, sets or waits for stays in VRAM from now on. Nodes of
 * other types name no memory, or graphs whose own nodes came by here. */
CUresult graph_fix_node(const CUgraphNodeParams *node);

#endif
