// SPDX-License-Identifier: GPL-2.0-or-later
#include "launch.h"

#include <stdlib.h>
#include <string.h>

#include "api.gen.h"
#include "device.h"
#include "fault.h"
#include "kernel.h"
#include "stream.h"

struct launch {
	struct work work;
	CUfunction function; /* as the program gave it */
	softcuda_kernel_fn fn;
	struct softcuda_launch info;
	void *params[]; /* into the bytes that follow them */
};

static void launch_run(struct work *work, const struct place *place)
{
	struct launch *launch = (struct launch *)work;
	struct softcuda_launch info = launch->info;

	info.device = place->device;
	info.stream = place->stream;
	fault_run(launch->fn, &info, launch->params);
}

static void launch_release(struct work *work)
{
	free(work);
}

/* The packed buffer that an extra list names. */
static CUresult read_extra(void **extra, const unsigned char **buffer, size_t *bytes)
{
	*buffer = NULL;
	*bytes = 0;
	for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
		if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER)
			*buffer = extra[1];
		else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE)
			*bytes = *(size_t *)extra[1];
		else
			return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

/* Copies the parameters of a launch, given in one of the two ways, to where it keeps them. */
static CUresult copy_params(const struct kernel *kernel, void **params, void **extra,
			    unsigned char *to)
{
	const unsigned char *buffer;
	size_t bytes;
	CUresult error;

	if (params && extra)
		return CUDA_ERROR_INVALID_VALUE;
	if (!kernel->param_count)
		return CUDA_SUCCESS;
	if (params) {
		for (unsigned int i = 0; i < kernel->param_count; i++)
			memcpy(to + kernel->params[i].offset, params[i], kernel->params[i].bytes);
		return CUDA_SUCCESS;
	}
	if (!extra)
		return CUDA_ERROR_INVALID_VALUE;
	error = read_extra(extra, &buffer, &bytes);
	if (error)
		return error;
	if (!buffer || bytes < kernel->param_bytes)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(to, buffer, kernel->param_bytes);
	return CUDA_SUCCESS;
}

static CUresult check_shape(const CUDA_KERNEL_NODE_PARAMS *params)
{
	uint64_t threads = (uint64_t)params->blockDimX * params->blockDimY * params->blockDimZ;

	if (!params->gridDimX || !params->gridDimY || !params->gridDimZ || !threads)
		return CUDA_ERROR_INVALID_VALUE;
	if (params->gridDimX > INT32_MAX || params->gridDimY > 65535 || params->gridDimZ > 65535)
		return CUDA_ERROR_INVALID_VALUE;
	/* Each by itself, since the product may have wrapped round. */
	if (params->blockDimX > 1024 || params->blockDimY > 1024 || params->blockDimZ > 64)
		return CUDA_ERROR_INVALID_VALUE;
	if (threads > DEVICE_MAX_THREADS_PER_BLOCK ||
	    params->sharedMemBytes > DEVICE_MAX_SHARED_OPTIN_BYTES)
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}

CUresult launch_work_of_node(const CUDA_KERNEL_NODE_PARAMS *params, struct work **work)
{
	CUfunction function = params->func ? params->func : (CUfunction)params->kern;
	const struct kernel *kernel = kernel_of(function);
	unsigned char *bytes;
	struct launch *launch;
	size_t pointers;
	CUresult error;

	if (!kernel)
		return CUDA_ERROR_INVALID_HANDLE;
	error = check_shape(params);
	if (error)
		return error;
	pointers = kernel->param_count * sizeof *launch->params;
	launch = malloc(sizeof *launch + pointers + kernel->param_bytes);
	if (!launch)
		return CUDA_ERROR_OUT_OF_MEMORY;
	bytes = (unsigned char *)launch->params + pointers;
	error = copy_params(kernel, params->kernelParams, params->extra, bytes);
	if (error) {
		free(launch);
		return error;
	}
	work_init(&launch->work, CU_GRAPH_NODE_TYPE_KERNEL, kernel->name, launch_run,
		  launch_release);
	launch->function = function;
	launch->fn = kernel->fn;
	launch->info = (struct softcuda_launch){
		.name = kernel->name,
		.grid = { params->gridDimX, params->gridDimY, params->gridDimZ },
		.block = { params->blockDimX, params->blockDimY, params->blockDimZ },
		.shared_bytes = params->sharedMemBytes,
		.param_buffer = bytes,
		.param_bytes = kernel->param_bytes,
	};
	for (unsigned int i = 0; i < kernel->param_count; i++)
		launch->params[i] = bytes + kernel->params[i].offset;
	*work = &launch->work;
	return CUDA_SUCCESS;
}

void launch_params_of_work(const struct work *work, CUDA_KERNEL_NODE_PARAMS *params)
{
	const struct launch *launch = (const struct launch *)work;
	bool is_function = is_kind(launch->function, KIND_FUNCTION);

	*params = (CUDA_KERNEL_NODE_PARAMS){
		.func = is_function ? launch->function : NULL,
		.kern = is_function ? NULL : (CUkernel)launch->function,
		.gridDimX = launch->info.grid[0],
		.gridDimY = launch->info.grid[1],
		.gridDimZ = launch->info.grid[2],
		.blockDimX = launch->info.block[0],
		.blockDimY = launch->info.block[1],
		.blockDimZ = launch->info.block[2],
		.sharedMemBytes = launch->info.shared_bytes,
		.kernelParams = (void **)launch->params,
	};
}

CUresult launch_attribute_of_work(const struct work *work, int attribute, void *value)
{
	const struct launch *launch = (const struct launch *)work;

	memset(value, 0, sizeof(((CUlaunchAttribute *)NULL)->value));
	switch (attribute) {
	case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
		memcpy(value, &launch->info.cooperative, sizeof launch->info.cooperative);
		return CUDA_SUCCESS;
	case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
		memcpy(value, launch->info.cluster, sizeof launch->info.cluster);
		return CUDA_SUCCESS;
	case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
	case CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE:
		return CUDA_SUCCESS; /* it cannot be asked for */
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
}

void launch_keep_attributes(struct work *work, const struct work *old)
{
	struct softcuda_launch *to = &((struct launch *)work)->info;
	const struct softcuda_launch *from = &((const struct launch *)old)->info;

	to->cooperative = from->cooperative;
	memcpy(to->cluster, from->cluster, sizeof to->cluster);
}

/* Those that kernels are told of. */
static void set_attributes(struct work *work, const CUlaunchAttribute *attrs, unsigned int count)
{
	struct softcuda_launch *info = &((struct launch *)work)->info;

	for (unsigned int i = 0; i < count; i++) {
		if (attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
			memcpy(&info->cooperative, attrs[i].value, sizeof info->cooperative);
		else if (attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
			memcpy(info->cluster, attrs[i].value, sizeof info->cluster);
	}
}

static CUresult submit(CUstream stream, const CUDA_KERNEL_NODE_PARAMS *params,
		       const CUlaunchAttribute *attrs, unsigned int count)
{
	struct work *work;
	CUresult error;

	if (!stream)
		return CUDA_ERROR_INVALID_HANDLE;
	error = launch_work_of_node(params, &work);
	if (error)
		return error;
	set_attributes(work, attrs, count);
	return stream_submit(stream, work);
}

static CUDA_KERNEL_NODE_PARAMS shape(CUfunction f, unsigned int gx, unsigned int gy,
				     unsigned int gz, unsigned int bx, unsigned int by,
				     unsigned int bz, unsigned int shared, void **params,
				     void **extra)
{
	return (CUDA_KERNEL_NODE_PARAMS){
		.func = f,
		.gridDimX = gx,
		.gridDimY = gy,
		.gridDimZ = gz,
		.blockDimX = bx,
		.blockDimY = by,
		.blockDimZ = bz,
		.sharedMemBytes = shared,
		.kernelParams = params,
		.extra = extra,
	};
}

CUresult do_cuLaunchKernel(bool per_thread, CUfunction f, unsigned int gx, unsigned int gy,
			   unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
			   unsigned int shared, CUstream stream, void **params, void **extra)
{
	const CUDA_KERNEL_NODE_PARAMS launch =
		shape(f, gx, gy, gz, bx, by, bz, shared, params, extra);

	return submit(stream_resolve(stream, per_thread), &launch, NULL, 0);
}

CUresult do_cuLaunchCooperativeKernel(bool per_thread, CUfunction f, unsigned int gx,
				      unsigned int gy, unsigned int gz, unsigned int bx,
				      unsigned int by, unsigned int bz, unsigned int shared,
				      CUstream stream, void **params)
{
	const CUDA_KERNEL_NODE_PARAMS launch =
		shape(f, gx, gy, gz, bx, by, bz, shared, params, NULL);
	const CUlaunchAttribute together = { .id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
					     .value = { 1 } };

	return submit(stream_resolve(stream, per_thread), &launch, &together, 1);
}

/* The attributes of a launch say how it is spread over a device; here is one thread, which is told.
 */
CUresult do_cuLaunchKernelEx(bool per_thread, const CUlaunchConfig *config, CUfunction f,
			     void **params, void **extra)
{
	CUDA_KERNEL_NODE_PARAMS launch;

	if (!config || (config->numAttrs && !config->attrs))
		return CUDA_ERROR_INVALID_VALUE;
	launch = shape(f, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
		       config->blockDimY, config->blockDimZ, config->sharedMemBytes, params, extra);
	return submit(stream_resolve(config->hStream, per_thread), &launch, config->attrs,
		      config->numAttrs);
}
