// SPDX-License-Identifier: GPL-2.0-or-later
#include "kernel.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "builtin.h"
#include "device.h"
#include "entry.h"

#define MAX_PARAM_BYTES 32764

/* CU_FUNC_ATTRIBUTE_* */
enum {
	MAX_THREADS_PER_BLOCK = 0,
	NUM_REGS = 4,
	PTX_VERSION = 5,
	BINARY_VERSION = 6,
	MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
	PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct kernel *kernels; /* the newest first; lock */
static pthread_once_t builtins_once = PTHREAD_ONCE_INIT;

static size_t alignment_of(size_t bytes)
{
	size_t alignment = bytes & -bytes;

	return alignment < 8 ? alignment : 8;
}

static struct kernel *kernel_create(const char *name, softcuda_kernel_fn fn, unsigned int count,
				    const size_t *sizes)
{
	struct kernel *kernel = calloc(1, sizeof *kernel + count * sizeof *kernel->params);

	if (!kernel)
		return NULL;
	kernel->name = strdup(name);
	if (!kernel->name) {
		free(kernel);
		return NULL;
	}
	kernel->fn = fn;
	kernel->param_count = count;
	for (unsigned int i = 0; i < count; i++) {
		size_t alignment = alignment_of(sizes[i]);
		size_t offset = (kernel->param_bytes + alignment - 1) & -alignment;

		kernel->params[i] = (struct kernel_param){ offset, sizes[i] };
		kernel->param_bytes = offset + sizes[i];
	}
	return kernel;
}

static int add_kernel(const char *name, softcuda_kernel_fn fn, unsigned int count,
		      const size_t *sizes)
{
	struct kernel *kernel;

	if (!name || !*name || !fn || count > MAX_PARAM_BYTES || (count && !sizes))
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned int i = 0; i < count; i++)
		if (!sizes[i] || sizes[i] > MAX_PARAM_BYTES)
			return CUDA_ERROR_INVALID_VALUE;
	kernel = kernel_create(name, fn, count, sizes);
	if (!kernel)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (kernel->param_bytes > MAX_PARAM_BYTES) {
		free(kernel->name);
		free(kernel);
		return CUDA_ERROR_INVALID_VALUE;
	}
	pthread_mutex_lock(&lock);
	kernel->next = kernels;
	kernels = kernel;
	pthread_mutex_unlock(&lock);
	return CUDA_SUCCESS;
}

static void add_builtins(void)
{
	for (const struct builtin *builtin = builtins; builtin->name; builtin++)
		add_kernel(builtin->name, builtin->fn, builtin->param_count, builtin->sizes);
}

EXPORT int softcudaRegisterKernel(const char *name, softcuda_kernel_fn fn, unsigned int nparams,
				  const size_t *sizes)
{
	/* First, so that a program may replace them. */
	pthread_once(&builtins_once, add_builtins);
	return add_kernel(name, fn, nparams, sizes);
}

const struct kernel *kernel_find(const char *name)
{
	struct kernel *kernel;

	pthread_once(&builtins_once, add_builtins);
	pthread_mutex_lock(&lock);
	kernel = kernels;
	while (kernel && strcmp(kernel->name, name))
		kernel = kernel->next;
	pthread_mutex_unlock(&lock);
	return kernel;
}

const struct kernel *kernel_of(CUfunction function)
{
	if (is_kind(function, KIND_FUNCTION))
		return function->kernel;
	if (is_kind(function, KIND_KERNEL))
		return ((CUkernel)function)->kernel;
	return NULL;
}

struct kernel_settings *kernel_settings_of(CUfunction function)
{
	if (is_kind(function, KIND_FUNCTION))
		return &function->settings;
	if (is_kind(function, KIND_KERNEL))
		return &((CUkernel)function)->settings;
	return NULL;
}

CUresult kernel_get_param(const struct kernel *kernel, size_t index, size_t *offset, size_t *size)
{
	if (!offset || index >= kernel->param_count)
		return CUDA_ERROR_INVALID_VALUE;
	*offset = kernel->params[index].offset;
	if (size)
		*size = kernel->params[index].bytes;
	return CUDA_SUCCESS;
}

CUresult kernel_get_attribute(const struct kernel_settings *settings, int attribute, int *value)
{
	if (!value || attribute < 0 || attribute >= KERNEL_ATTRIBUTES)
		return CUDA_ERROR_INVALID_VALUE;
	switch (attribute) {
	case MAX_THREADS_PER_BLOCK:
		*value = DEVICE_MAX_THREADS_PER_BLOCK;
		break;
	case NUM_REGS:
		*value = 32;
		break;
	case PTX_VERSION:
	case BINARY_VERSION:
		*value = 10 * DEVICE_COMPUTE_MAJOR + DEVICE_COMPUTE_MINOR;
		break;
	case MAX_DYNAMIC_SHARED_SIZE_BYTES:
		*value = settings->values[attribute];
		if (!*value)
			*value = DEVICE_MAX_SHARED_BYTES;
		break;
	default:
		*value = settings->values[attribute];
	}
	return CUDA_SUCCESS;
}

CUresult kernel_set_attribute(struct kernel_settings *settings, int attribute, int value)
{
	int most;

	switch (attribute) {
	case MAX_DYNAMIC_SHARED_SIZE_BYTES:
		most = DEVICE_MAX_SHARED_OPTIN_BYTES;
		break;
	case PREFERRED_SHARED_MEMORY_CARVEOUT:
		most = 100;
		break;
	default:
		if (attribute < 10 || attribute >= KERNEL_ATTRIBUTES)
			return CUDA_ERROR_INVALID_VALUE;
		most = INT32_MAX;
	}
	if (value > most || value < -1)
		return CUDA_ERROR_INVALID_VALUE;
	settings->values[attribute] = value;
	return CUDA_SUCCESS;
}
