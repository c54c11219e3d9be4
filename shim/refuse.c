// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What cannot be had of memory that moves. Programs that ask before they use it are
 * told that it is not there; others get an error, and a line on stderr says why.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "device.h"
#include "gate.h"
#include "log.h"

#define P2P_ACCESS_SUPPORTED 2 /* CU_DEVICE_P2P_ATTRIBUTE_* */
#define P2P_ARRAY_ACCESS_SUPPORTED 4

static CUresult refuse(const char *what)
{
	log_warn("%s: not of memory that GreenBoost moves; allocations smaller than a chunk "
		 "(--chunk) are not moved",
		 what);
	return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult hook_cuIpcGetMemHandle(unsigned int variant, void *handle, CUdeviceptr dptr)
{
	(void)variant;
	if (device_of(dptr))
		return refuse("sharing with other processes (cuIpcGetMemHandle)");
	return driver.cuIpcGetMemHandle(handle, dptr);
}

CUresult hook_cuMemGetHandleForAddressRange(unsigned int variant, void *handle, CUdeviceptr dptr,
					    size_t size, int type, unsigned long long flags)
{
	(void)variant;
	if (device_of(dptr))
		return refuse("a DMA-BUF for other devices (cuMemGetHandleForAddressRange)");
	return driver.cuMemGetHandleForAddressRange(handle, dptr, size, type, flags);
}

CUresult hook_cuMulticastBindAddr(unsigned int variant, CUmemGenericAllocationHandle multicast,
				  size_t offset, CUdeviceptr ptr, size_t size,
				  unsigned long long flags)
{
	(void)variant;
	if (device_of(ptr))
		return refuse("multicast (cuMulticastBindAddr)");
	return driver.cuMulticastBindAddr(multicast, offset, ptr, size, flags);
}

/* Of the attributes only SYNC_MEMOPS can be set; it is for devices that read memory directly. */
CUresult hook_cuPointerSetAttribute(unsigned int variant, const void *value, int attribute,
				    CUdeviceptr ptr)
{
	(void)variant;
	if (device_of(ptr))
		return refuse("GPUDirect (cuPointerSetAttribute)");
	return driver.cuPointerSetAttribute(value, attribute, ptr);
}

/*
 * Kernels of one device that read another's memory name chunks of which its own
 * tables know nothing. Programs copy where that is not to be had, and copies are
 * seen.
 */
CUresult hook_cuDeviceCanAccessPeer(unsigned int variant, int *can, CUdevice device, CUdevice peer)
{
	CUresult result = driver.cuDeviceCanAccessPeer(can, device, peer);

	(void)variant;
	if (!result && device_wanted())
		*can = 0;
	return result;
}

CUresult hook_cuDeviceGetP2PAttribute(unsigned int variant, int *value, int attribute,
				      CUdevice device, CUdevice peer)
{
	CUresult result = driver.cuDeviceGetP2PAttribute(value, attribute, device, peer);

	(void)variant;
	if (!result && device_wanted() && attribute >= P2P_ACCESS_SUPPORTED &&
	    attribute <= P2P_ARRAY_ACCESS_SUPPORTED)
		*value = 0;
	return result;
}

CUresult hook_cuCtxEnablePeerAccess(unsigned int variant, CUcontext peer, unsigned int flags)
{
	(void)variant;
	if (!device_wanted())
		return driver.cuCtxEnablePeerAccess(peer, flags);
	log_warn("kernels cannot use another GPU's memory (cuCtxEnablePeerAccess) while "
		 "GreenBoost moves it; copies between GPUs work");
	return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
}

/* ---- ways to launch that nobody has used for ten years: refused once chunks may be absent ---- */

static CUresult unseen(const char *name)
{
	log_warn("%s is not supported while GPU memory overflows: what the kernel reads cannot be "
		 "seen; launch it with cuLaunchKernel",
		 name);
	return CUDA_ERROR_NOT_SUPPORTED;
}

static CUresult end(CUresult result)
{
	gate_leave();
	return result;
}

CUresult hook_cuLaunch(unsigned int variant, CUfunction f)
{
	(void)variant;
	if (gate_enter())
		return end(driver.cuLaunch(f));
	return device_paging() ? unseen("cuLaunch") : driver.cuLaunch(f);
}

CUresult hook_cuLaunchGrid(unsigned int variant, CUfunction f, int width, int height)
{
	(void)variant;
	if (gate_enter())
		return end(driver.cuLaunchGrid(f, width, height));
	return device_paging() ? unseen("cuLaunchGrid") : driver.cuLaunchGrid(f, width, height);
}

CUresult hook_cuLaunchGridAsync(unsigned int variant, CUfunction f, int width, int height,
				CUstream stream)
{
	(void)variant;
	if (gate_enter())
		return end(driver.cuLaunchGridAsync(f, width, height, stream));
	return device_paging() ? unseen("cuLaunchGridAsync")
			       : driver.cuLaunchGridAsync(f, width, height, stream);
}

CUresult hook_cuLaunchCooperativeKernelMultiDevice(unsigned int variant, void *launches,
						   unsigned int count, unsigned int flags)
{
	(void)variant;
	if (gate_enter())
		return end(driver.cuLaunchCooperativeKernelMultiDevice(launches, count, flags));
	return device_paging()
		       ? unseen("cuLaunchCooperativeKernelMultiDevice")
		       : driver.cuLaunchCooperativeKernelMultiDevice(launches, count, flags);
}
