/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the software CUDA device offers beyond the driver API: kernels that are
 * host functions. Find softcudaRegisterKernel with dlsym in libcuda.so.1; where
 * it is missing, the driver is a real one.
 */
#ifndef SOFTCUDA_H
#define SOFTCUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One launch, as its kernel sees it. Valid until the kernel returns. */
struct softcuda_launch {
	const char *name;
	unsigned int grid[3];
	unsigned int block[3];
	unsigned int shared_bytes;
	int device; /* ordinal of the device it runs on */
	uint64_t stream; /* as cuStreamGetId tells it */
	const void *param_buffer; /* all parameters, laid out as a C struct */
	size_t param_bytes;
	unsigned int cluster[3]; /* of the launch's attributes; 0: none was asked for */
	int cooperative;
};

/*
 * Called once a launch, on the stream's thread, for the whole grid. params[i]
 * points at a copy of parameter i that was taken when the launch was made.
 * Device addresses are plain pointers here; one that is not mapped faults.
 * No driver function may be called from within.
 */
typedef void (*softcuda_kernel_fn)(const struct softcuda_launch *launch, void **params);

/*
 * Gives every module and library a kernel called name, with nparams by-value
 * parameters of sizes[i] bytes. Each is aligned to the largest power of two
 * that divides its size, at most 8. Registering a name again replaces it for
 * functions looked up from then on. May be called before cuInit.
 *
 * Returns CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE (an empty name, no function, a
 * parameter of no bytes, or parameters of more than 32764 bytes together) or
 * CUDA_ERROR_OUT_OF_MEMORY.
 */
int softcudaRegisterKernel(const char *name, softcuda_kernel_fn fn, unsigned nparams,
			   const size_t *sizes);

/* What the image given to cuModuleLoadData or cuLibraryLoadData begins with. */
#define SOFTCUDA_IMAGE "softcuda"

#ifdef __cplusplus
}
#endif

#endif
