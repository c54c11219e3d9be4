/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Kernels: host functions by name, and the handles that modules and libraries give of them. */
#ifndef SOFTCUDA_KERNEL_H
#define SOFTCUDA_KERNEL_H

#include "handle.h"
#include "cuda_abi.h"
#include "softcuda.h"

#define KERNEL_ATTRIBUTES 16

struct kernel_param {
	size_t offset, bytes;
};

/* A registered kernel. Never freed: launches and handles point to it. */
struct kernel {
	struct kernel *next;
	char *name;
	softcuda_kernel_fn fn;
	size_t param_bytes; /* of all, packed */
	unsigned int param_count;
	struct kernel_param params[];
};

/* Attributes that a program may set, by their CU_FUNC_ATTRIBUTE_*. */
struct kernel_settings {
	_Atomic int values[KERNEL_ATTRIBUTES];
};

/* A CUfunction, of a module. */
struct CUfunc_st {
	enum kind kind;
	CUmodule module;
	const struct kernel *kernel;
	CUfunction next;
	struct kernel_settings settings;
};

/* A CUkernel, of a library. */
struct CUkern_st {
	enum kind kind;
	CUlibrary library;
	const struct kernel *kernel;
	CUkernel next;
	struct kernel_settings settings;
};

/* The kernel last registered by that name, or NULL. */
const struct kernel *kernel_find(const char *name);

/*
 * What a function handle launches, or NULL when it is none. Programs pass a
 * CUkernel for a CUfunction here, as the driver allows.
 */
const struct kernel *kernel_of(CUfunction function);

/* Settings of the same. */
struct kernel_settings *kernel_settings_of(CUfunction function);

CUresult kernel_get_param(const struct kernel *kernel, size_t index, size_t *offset, size_t *size);
CUresult kernel_get_attribute(const struct kernel_settings *settings, int attribute, int *value);
CUresult kernel_set_attribute(struct kernel_settings *settings, int attribute, int value);

#endif
