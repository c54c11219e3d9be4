/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What every exported function does first (entries.gen.c). */
#ifndef SOFTCUDA_ENTRY_H
#define SOFTCUDA_ENTRY_H

#include <stdatomic.h>
#include <stdbool.h>

#include "cuda_abi.h"

#define EXPORT __attribute__((visibility("default")))

/* What a function needs; api.def says which. */
enum need { NEED_NOTHING, NEED_INIT, NEED_CONTEXT, NEED_UNCAPTURED };

CUresult entry_check(enum need need);

/* And last: a kernel that was waited for may have spoilt the context. */
CUresult entry_result(enum need need, CUresult result);

/* Says once that a program asked for something, by name, that is not implemented. */
CUresult entry_unsupported(const char *name, atomic_flag *said);

/*
 * Whether this process is a forked child of the one that called cuInit. It has
 * the mappings but none of the threads, and perhaps locks that nobody will
 * release: it is turned away before it takes any.
 */
bool entry_forked(void);

#endif
