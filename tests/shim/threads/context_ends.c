// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Whichever way a context ends, what was asked about its kernels is forgotten:
 * their handles may come to mean others.
 */
#include <stdio.h>

#include "context.c"

struct driver driver;

static int forgotten, active;

const char *driver_error(CUresult error)
{
	(void)error;
	return "";
}

void params_forget(void)
{
	forgotten++;
}

void params_scan(CUfunction f, void **params, void **extra, uint64_t low, uint64_t high,
		 params_found found, void *arg)
{
	(void)f, (void)params, (void)extra, (void)low, (void)high, (void)found, (void)arg;
}

static CUresult of_context(CUcontext context)
{
	(void)context;
	return CUDA_SUCCESS;
}

static CUresult of_device(CUdevice device)
{
	(void)device;
	return CUDA_SUCCESS;
}

static CUresult state(CUdevice device, unsigned int *flags, int *is_active)
{
	(void)device;
	*flags = 0;
	*is_active = active;
	return CUDA_SUCCESS;
}

static bool expect(int times, const char *what)
{
	if (forgotten != times)
		printf("%s: forgotten %d times, not %d\n", what, forgotten, times);
	return forgotten == times;
}

int main(void)
{
	driver.cuCtxDestroy[1] = of_context;
	driver.cuDevicePrimaryCtxRelease[1] = of_device;
	driver.cuDevicePrimaryCtxReset[1] = of_device;
	driver.cuDevicePrimaryCtxGetState = state;
	hook_cuCtxDestroy(1, (CUcontext)&driver);
	if (!expect(1, "destroyed"))
		return 1;
	hook_cuDevicePrimaryCtxReset(1, 0);
	if (!expect(2, "reset"))
		return 1;
	active = 1;
	hook_cuDevicePrimaryCtxRelease(1, 0);
	if (!expect(2, "one of two released"))
		return 1;
	active = 0;
	hook_cuDevicePrimaryCtxRelease(1, 0);
	return !expect(3, "released");
}
