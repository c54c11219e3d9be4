/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Kernels that every program finds, for tests and benchmarks in C; README.md lists them. */
#ifndef SOFTCUDA_BUILTIN_H
#define SOFTCUDA_BUILTIN_H

#include "softcuda.h"

struct builtin {
	const char *name; /* NULL ends the list */
	softcuda_kernel_fn fn;
	unsigned int param_count;
	size_t sizes[4];
};

extern const struct builtin builtins[];

#endif
