/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The names of the functions that a program launches, for those who write them down. */
#ifndef GREENBOOST_FUNCTION_H
#define GREENBOOST_FUNCTION_H

#include <stdbool.h>
#include <stdint.h>

#include "driver.h"

struct function {
	CUfunction handle; /* NULL: it may mean something else by now, or is none */
	struct function *next; /* in its bucket */
	uint32_t number; /* how many were known before it */
	bool recorded; /* the recorder's: its name is in the file */
	char *shown; /* the tracer's: its name as people write it; NULL: not asked for yet */
	char name[]; /* as the driver says, empty if it does not */
};

/* Lives as long as the process. NULL: no memory. */
struct function *function_of(CUfunction f);

/* Something launched that is no function, by this name. Lives as long as the process. NULL: no
 * memory. */
struct function *function_named(const char *name);

/* Handles may come to mean something else. */
void functions_forget(void);

#endif
