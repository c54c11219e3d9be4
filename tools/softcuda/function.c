// SPDX-License-Identifier: GPL-2.0-or-later
/* What can be asked and set of kernels and functions. */
#include "api.gen.h"
#include "device.h"
#include "kernel.h"

CUresult do_cuKernelGetName(const char **name, CUkernel kernel)
{
	if (!name)
		return CUDA_ERROR_INVALID_VALUE;
	if (!is_kind(kernel, KIND_KERNEL))
		return CUDA_ERROR_INVALID_HANDLE;
	*name = kernel->kernel->name;
	return CUDA_SUCCESS;
}

CUresult do_cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t *offset, size_t *size)
{
	if (!is_kind(kernel, KIND_KERNEL))
		return CUDA_ERROR_INVALID_HANDLE;
	return kernel_get_param(kernel->kernel, index, offset, size);
}

CUresult do_cuKernelGetAttribute(int *value, int attribute, CUkernel kernel, CUdevice device)
{
	if (!is_kind(kernel, KIND_KERNEL))
		return CUDA_ERROR_INVALID_HANDLE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	return kernel_get_attribute(&kernel->settings, attribute, value);
}

CUresult do_cuKernelSetAttribute(int attribute, int value, CUkernel kernel, CUdevice device)
{
	if (!is_kind(kernel, KIND_KERNEL))
		return CUDA_ERROR_INVALID_HANDLE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	return kernel_set_attribute(&kernel->settings, attribute, value);
}

CUresult do_cuFuncGetName(const char **name, CUfunction function)
{
	if (!name)
		return CUDA_ERROR_INVALID_VALUE;
	if (!kernel_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	*name = kernel_of(function)->name;
	return CUDA_SUCCESS;
}

CUresult do_cuFuncGetModule(CUmodule *module, CUfunction function)
{
	if (!module)
		return CUDA_ERROR_INVALID_VALUE;
	if (!is_kind(function, KIND_FUNCTION))
		return CUDA_ERROR_INVALID_HANDLE;
	*module = function->module;
	return CUDA_SUCCESS;
}

/* Unlike a launch, this one refuses a CUkernel, as the driver was seen to do. */
CUresult do_cuFuncGetParamInfo(CUfunction function, size_t index, size_t *offset, size_t *size)
{
	if (!is_kind(function, KIND_FUNCTION))
		return CUDA_ERROR_INVALID_HANDLE;
	return kernel_get_param(function->kernel, index, offset, size);
}

CUresult do_cuFuncGetAttribute(int *value, int attribute, CUfunction function)
{
	if (!kernel_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	return kernel_get_attribute(kernel_settings_of(function), attribute, value);
}

CUresult do_cuFuncSetAttribute(CUfunction function, int attribute, int value)
{
	if (!kernel_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	return kernel_set_attribute(kernel_settings_of(function), attribute, value);
}

CUresult do_cuFuncSetCacheConfig(CUfunction function, int config)
{
	if (!kernel_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	return config >= 0 && config <= 3 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuFuncIsLoaded(int *state, CUfunction function)
{
	enum { LOADED = 1 };

	if (!state)
		return CUDA_ERROR_INVALID_VALUE;
	if (!kernel_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	*state = LOADED;
	return CUDA_SUCCESS;
}

CUresult do_cuFuncLoad(CUfunction function)
{
	return kernel_of(function) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult do_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function,
								 int block_size, size_t shared,
								 unsigned int flags)
{
	if (!blocks || block_size <= 0 || flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	if (!kernel_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	*blocks = 0;
	if (block_size > DEVICE_MAX_THREADS_PER_BLOCK || shared > DEVICE_MAX_SHARED_OPTIN_BYTES)
		return CUDA_SUCCESS;
	*blocks = DEVICE_MAX_THREADS_PER_MULTIPROCESSOR / block_size;
	if (shared && *blocks > (int)(DEVICE_MAX_SHARED_OPTIN_BYTES / shared))
		*blocks = (int)(DEVICE_MAX_SHARED_OPTIN_BYTES / shared);
	if (*blocks > DEVICE_MAX_BLOCKS_PER_MULTIPROCESSOR)
		*blocks = DEVICE_MAX_BLOCKS_PER_MULTIPROCESSOR;
	return CUDA_SUCCESS;
}

CUresult do_cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function,
							int block_size, size_t shared)
{
	return do_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size,
								       shared, 0);
}
