/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Executable graphs, for whoever changes their nodes. */
#ifndef GREENBOOST_GRAPH_EXEC_H
#define GREENBOOST_GRAPH_EXEC_H

#include "driver.h"

/* The driver has given a node of it these parameters, of its type. */
CUresult exec_changed(CUgraphExec handle, CUgraphNode node, int type, const void *params);

#endif
