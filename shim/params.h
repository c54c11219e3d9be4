/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which addresses a launch's parameters carry. */
#ifndef GREENBOOST_PARAMS_H
#define GREENBOOST_PARAMS_H

#include <stdint.h>

#include "driver.h"

/* Called for every 8-byte slot of the parameters whose value lies in [low, high). */
typedef void (*params_found)(void *arg, uint64_t address);

/*
 * Look through a launch's parameters, by-value structs included. params and
 * extra are cuLaunchKernel's. Layouts are asked of the driver once a function.
 */
void params_scan(CUfunction f, void **params, void **extra, uint64_t low, uint64_t high,
		 params_found found, void *arg);

/* A launch's parameters, as cuLaunchKernel takes them, in one piece of memory. */
struct params {
	void **params, **extra;
};

/*
 * A copy, to be freed. CUDA_ERROR_NOT_FOUND: the driver does not tell how large they
 * are. CUDA_ERROR_OUT_OF_MEMORY: of the host's.
 */
CUresult params_copy(CUfunction f, void **params, void **extra, struct params **copy);

/* Functions may have gone, and their handles may come to mean others. */
void params_forget(void);

#endif
