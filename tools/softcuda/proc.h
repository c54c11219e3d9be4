/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What cuGetProcAddress finds; generated from names.txt and versions.txt. */
#ifndef SOFTCUDA_PROC_H
#define SOFTCUDA_PROC_H

#include <stdbool.h>

struct proc {
	const char *symbol; /* as a program asks for it */
	int version; /* the first CUDA version that means this function */
	bool per_thread; /* a per-thread-default-stream variant */
	void (*function)(void);
};

/* Sorted by symbol, then by version. */
extern const struct proc proc_table[];
extern const unsigned int proc_count;

#endif
