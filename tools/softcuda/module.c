// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Modules and libraries: any image that begins with SOFTCUDA_IMAGE has all registered kernels. So
 * has any PTX, which is not read: what it calls by its names must be registered here.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.gen.h"
#include "device.h"
#include "kernel.h"

struct CUmod_st {
	enum kind kind;
	CUlibrary library; /* NULL: loaded by itself */
	CUfunction functions; /* those that were asked for; lock */
};

struct CUlib_st {
	enum kind kind;
	CUkernel kernels; /* those that were asked for; lock */
	struct CUmod_st module;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static CUresult check_image(const void *image)
{
	if (!image)
		return CUDA_ERROR_INVALID_VALUE;
	if (strncmp(image, SOFTCUDA_IMAGE, strlen(SOFTCUDA_IMAGE)) && strncmp(image, "//", 2) &&
	    strncmp(image, ".version", 8))
		return CUDA_ERROR_INVALID_IMAGE;
	return CUDA_SUCCESS;
}

static CUresult check_file(const char *path)
{
	char start[sizeof SOFTCUDA_IMAGE] = { 0 };
	FILE *file;

	if (!path)
		return CUDA_ERROR_INVALID_VALUE;
	file = fopen(path, "rbe");
	if (!file)
		return CUDA_ERROR_FILE_NOT_FOUND;
	/* A file that cannot be read is one that does not begin as it should. */
	(void)!fread(start, 1, sizeof start - 1, file);
	fclose(file);
	return check_image(start);
}

static CUresult module_create(CUmodule *module, CUresult error)
{
	struct CUmod_st *created;

	if (error)
		return error;
	if (!module)
		return CUDA_ERROR_INVALID_VALUE;
	created = calloc(1, sizeof *created);
	if (!created)
		return CUDA_ERROR_OUT_OF_MEMORY;
	created->kind = KIND_MODULE;
	*module = created;
	return CUDA_SUCCESS;
}

CUresult do_cuModuleLoadData(CUmodule *module, const void *image)
{
	return module_create(module, check_image(image));
}

CUresult do_cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count,
			       int *options, void **values)
{
	(void)count;
	(void)options;
	(void)values;
	return do_cuModuleLoadData(module, image);
}

CUresult do_cuModuleLoadFatBinary(CUmodule *module, const void *image)
{
	return do_cuModuleLoadData(module, image);
}

CUresult do_cuModuleLoad(CUmodule *module, const char *path)
{
	return module_create(module, check_file(path));
}

static void free_functions(CUmodule module)
{
	module->kind = KIND_NONE;
	while (module->functions) {
		CUfunction function = module->functions;

		module->functions = function->next;
		function->kind = KIND_NONE;
		free(function);
	}
}

CUresult do_cuModuleUnload(CUmodule module)
{
	if (!is_kind(module, KIND_MODULE) || module->library)
		return CUDA_ERROR_INVALID_HANDLE;
	free_functions(module);
	free(module);
	return CUDA_SUCCESS;
}

/* The module's handle of a kernel, always the same one. NULL: no memory. */
static CUfunction function_of(CUmodule module, const struct kernel *kernel)
{
	CUfunction function;

	pthread_mutex_lock(&lock);
	function = module->functions;
	while (function && function->kernel != kernel)
		function = function->next;
	if (!function)
		function = calloc(1, sizeof *function);
	if (function && !function->kernel) {
		function->kind = KIND_FUNCTION;
		function->module = module;
		function->kernel = kernel;
		function->next = module->functions;
		module->functions = function;
	}
	pthread_mutex_unlock(&lock);
	return function;
}

CUresult do_cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
	const struct kernel *kernel;

	if (!function || !name)
		return CUDA_ERROR_INVALID_VALUE;
	if (!is_kind(module, KIND_MODULE))
		return CUDA_ERROR_INVALID_HANDLE;
	kernel = kernel_find(name);
	if (!kernel)
		return CUDA_ERROR_NOT_FOUND;
	*function = function_of(module, kernel);
	return *function ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule module,
				 const char *name)
{
	(void)dptr;
	(void)bytes;
	if (!is_kind(module, KIND_MODULE))
		return CUDA_ERROR_INVALID_HANDLE;
	return name ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuModuleGetLoadingMode(int *mode)
{
	enum { EAGER_LOADING = 1 };

	if (!mode)
		return CUDA_ERROR_INVALID_VALUE;
	*mode = EAGER_LOADING;
	return CUDA_SUCCESS;
}

static CUresult library_create(CUlibrary *library, CUresult error)
{
	struct CUlib_st *created;

	if (error)
		return error;
	if (!library)
		return CUDA_ERROR_INVALID_VALUE;
	created = calloc(1, sizeof *created);
	if (!created)
		return CUDA_ERROR_OUT_OF_MEMORY;
	created->kind = KIND_LIBRARY;
	created->module.kind = KIND_MODULE;
	created->module.library = created;
	*library = created;
	return CUDA_SUCCESS;
}

CUresult do_cuLibraryLoadData(CUlibrary *library, const void *image, int *options, void **values,
			      unsigned int count, int *library_options, void **library_values,
			      unsigned int library_count)
{
	(void)options;
	(void)values;
	(void)count;
	(void)library_options;
	(void)library_values;
	(void)library_count;
	return library_create(library, check_image(image));
}

CUresult do_cuLibraryLoadFromFile(CUlibrary *library, const char *path, int *options, void **values,
				  unsigned int count, int *library_options, void **library_values,
				  unsigned int library_count)
{
	(void)options;
	(void)values;
	(void)count;
	(void)library_options;
	(void)library_values;
	(void)library_count;
	return library_create(library, check_file(path));
}

CUresult do_cuLibraryUnload(CUlibrary library)
{
	if (!is_kind(library, KIND_LIBRARY))
		return CUDA_ERROR_INVALID_HANDLE;
	library->kind = KIND_NONE;
	free_functions(&library->module);
	while (library->kernels) {
		CUkernel kernel = library->kernels;

		library->kernels = kernel->next;
		kernel->kind = KIND_NONE;
		free(kernel);
	}
	free(library);
	return CUDA_SUCCESS;
}

static CUkernel kernel_handle_of(CUlibrary library, const struct kernel *kernel)
{
	CUkernel handle;

	pthread_mutex_lock(&lock);
	handle = library->kernels;
	while (handle && handle->kernel != kernel)
		handle = handle->next;
	if (!handle)
		handle = calloc(1, sizeof *handle);
	if (handle && !handle->kernel) {
		handle->kind = KIND_KERNEL;
		handle->library = library;
		handle->kernel = kernel;
		handle->next = library->kernels;
		library->kernels = handle;
	}
	pthread_mutex_unlock(&lock);
	return handle;
}

CUresult do_cuLibraryGetKernel(CUkernel *handle, CUlibrary library, const char *name)
{
	const struct kernel *kernel;

	if (!handle || !name)
		return CUDA_ERROR_INVALID_VALUE;
	if (!is_kind(library, KIND_LIBRARY))
		return CUDA_ERROR_INVALID_HANDLE;
	kernel = kernel_find(name);
	if (!kernel)
		return CUDA_ERROR_NOT_FOUND;
	*handle = kernel_handle_of(library, kernel);
	return *handle ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuLibraryGetModule(CUmodule *module, CUlibrary library)
{
	if (!module)
		return CUDA_ERROR_INVALID_VALUE;
	if (!is_kind(library, KIND_LIBRARY))
		return CUDA_ERROR_INVALID_HANDLE;
	*module = &library->module;
	return CUDA_SUCCESS;
}

CUresult do_cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library,
			       const char *name)
{
	(void)dptr;
	(void)bytes;
	if (!is_kind(library, KIND_LIBRARY))
		return CUDA_ERROR_INVALID_HANDLE;
	return name ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
	if (!function)
		return CUDA_ERROR_INVALID_VALUE;
	if (!is_kind(kernel, KIND_KERNEL))
		return CUDA_ERROR_INVALID_HANDLE;
	*function = function_of(&kernel->library->module, kernel->kernel);
	return *function ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuKernelGetLibrary(CUlibrary *library, CUkernel kernel)
{
	if (!library)
		return CUDA_ERROR_INVALID_VALUE;
	if (!is_kind(kernel, KIND_KERNEL))
		return CUDA_ERROR_INVALID_HANDLE;
	*library = kernel->library;
	return CUDA_SUCCESS;
}
