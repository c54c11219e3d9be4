/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Handles are pointers to structs that begin with what they are, so that a wrong one is refused. */
#ifndef SOFTCUDA_HANDLE_H
#define SOFTCUDA_HANDLE_H

#include <stdbool.h>
#include <stdint.h>

enum kind {
	KIND_NONE, /* destroyed */
	KIND_CONTEXT = 0x5ca0,
	KIND_STREAM,
	KIND_EVENT,
	KIND_MODULE,
	KIND_LIBRARY,
	KIND_FUNCTION,
	KIND_KERNEL,
	KIND_POOL,
	KIND_GRAPH,
	KIND_NODE,
	KIND_EXEC,
	KIND_TEXTURE,
};

/* Small values are handles with a meaning of their own, never pointers. */
static inline bool is_kind(const void *handle, enum kind kind)
{
	return (uintptr_t)handle >= 4096 && !((uintptr_t)handle & 7) &&
	       *(const enum kind *)handle == kind;
}

#endif
