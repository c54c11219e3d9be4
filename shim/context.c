// SPDX-License-Identifier: GPL-2.0-or-later
/* Ends of contexts: what was in them is forgotten. */
#include "device.h"
#include "params.h"

static void context_ends(CUcontext ctx)
{
	device_abandon_context(ctx);
	tickets_forget_context(ctx);
	params_forget();
}

/* Its streams and events end with it; allocations are the device's. */
CUresult hook_cuGreenCtxDestroy(unsigned int variant, CUgreenCtx green)
{
	CUcontext ctx = NULL;

	(void)variant;
	if (!driver.cuCtxFromGreenCtx(&ctx, green) && ctx)
		context_ends(ctx);
	return driver.cuGreenCtxDestroy(green);
}

CUresult hook_cuCtxDestroy(unsigned int variant, CUcontext ctx)
{
	context_ends(ctx);
	return driver.cuCtxDestroy[variant](ctx);
}

/* The last one ends the context. */
CUresult hook_cuDevicePrimaryCtxRelease(unsigned int variant, CUdevice device)
{
	CUresult result = driver.cuDevicePrimaryCtxRelease[variant](device);
	unsigned int flags;
	int active = 1;

	if (driver.cuDevicePrimaryCtxGetState(device, &flags, &active) || active)
		return result;
	device_abandon(device);
	params_forget();
	return result;
}

CUresult hook_cuDevicePrimaryCtxReset(unsigned int variant, CUdevice device)
{
	device_abandon(device);
	params_forget();
	return driver.cuDevicePrimaryCtxReset[variant](device);
}
