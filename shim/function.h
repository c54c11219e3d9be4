/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The names of the functions that a program launches, and the last ones, for those who write them
 * down. */
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
	char *demangled; /* its name as people write it, where the program has libstdc++; or NULL */
	char name[]; /* as the driver says, empty if it does not */
};

/* Lives as long as the process. NULL: no memory. */
struct function *function_of(CUfunction f);

/* Its name for people to read. */
const char *function_shown(const struct function *f);

/* A kernel is about to be launched. */
void functions_note(CUfunction f, CUstream stream);

/* The launches before now, from the latest (0) to FUNCTIONS_LAST - 1. NULL: there is none. */
#define FUNCTIONS_LAST 8
const struct function *functions_last(unsigned int n, CUstream *stream);

/* Something launched that is no function, by this name. Lives as long as the process. NULL: no
 * memory. */
struct function *function_named(const char *name);

/* Handles may come to mean something else. */
void functions_forget(void);

#endif
