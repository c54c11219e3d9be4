// SPDX-License-Identifier: GPL-2.0-or-later
#include "device.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api.gen.h"
#include "context.h"
#include "settings.h"
#include "vram.h"

static int device_count;

CUresult devices_init(int count)
{
	device_count = count;
	return contexts_init(count);
}

bool device_exists(CUdevice device)
{
	return device >= 0 && device < device_count;
}

CUresult do_cuDeviceGet(CUdevice *device, int ordinal)
{
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(ordinal))
		return CUDA_ERROR_INVALID_DEVICE;
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetCount(int *count)
{
	if (!count)
		return CUDA_ERROR_INVALID_VALUE;
	*count = device_count;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetName(char *name, int size, CUdevice device)
{
	if (!name || size <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	snprintf(name, (size_t)size, "softcuda software device %d", device);
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
	if (!uuid)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	memcpy(uuid->bytes, "softcuda\0\0\0\0\0\0\0", sizeof uuid->bytes);
	uuid->bytes[15] = (char)device;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
	return do_cuDeviceGetUuid_v2(uuid, device);
}

CUresult do_cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
	size_t free;

	if (!bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	vram_totals(device, &free, bytes);
	return CUDA_SUCCESS;
}

/* By CUdevice_attribute. What is not listed is 0: the device has no such thing. */
static const int attributes[] = {
	[1] = DEVICE_MAX_THREADS_PER_BLOCK,
	[2] = 1024, /* max block dim x */
	[3] = 1024, /* max block dim y */
	[4] = 64, /* max block dim z */
	[5] = 0x7fffffff, /* max grid dim x */
	[6] = 65535, /* max grid dim y */
	[7] = 65535, /* max grid dim z */
	[8] = DEVICE_MAX_SHARED_BYTES,
	[9] = 65536, /* total constant memory */
	[10] = 32, /* warp size */
	[11] = 0x7fffffff, /* max pitch */
	[12] = 65536, /* max registers per block */
	[13] = 1000000, /* clock rate, kHz */
	[14] = 512, /* texture alignment */
	[15] = 1, /* GPU overlap */
	[19] = 1, /* can map host memory */
	[30] = 512, /* surface alignment */
	[31] = 1, /* concurrent kernels */
	[32] = 0, /* ECC enabled */
	[37] = 128, /* global memory bus width */
	[38] = 1 << 20, /* L2 cache size */
	[39] = DEVICE_MAX_THREADS_PER_MULTIPROCESSOR,
	[40] = 2, /* async engine count */
	[41] = 1, /* unified addressing */
	[51] = 32, /* texture pitch alignment */
	[75] = DEVICE_COMPUTE_MAJOR,
	[76] = DEVICE_COMPUTE_MINOR,
	[78] = 1, /* stream priorities supported */
	[79] = 1, /* global L1 cache supported */
	[80] = 1, /* local L1 cache supported */
	[81] = DEVICE_MAX_SHARED_OPTIN_BYTES + 1024, /* per multiprocessor */
	[82] = 65536, /* max registers per multiprocessor */
	[87] = 2, /* single to double precision ratio */
	[91] = 1, /* can use host pointer for registered memory */
	[95] = 1, /* cooperative launch */
	[97] = DEVICE_MAX_SHARED_OPTIN_BYTES,
	[99] = 1, /* host register supported */
	[102] = 1, /* virtual memory management supported */
	[106] = DEVICE_MAX_BLOCKS_PER_MULTIPROCESSOR,
	[111] = 1024, /* reserved shared memory per block */
	[115] = 1, /* memory pools supported */
	[130] = 0, /* NUMA config: none */
	[131] = -1, /* NUMA id */
	[134] = -1, /* host NUMA id */
	[147] = 0,
};

CUresult do_cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
	const int known = sizeof attributes / sizeof *attributes;

	if (!value || attribute < 1 || attribute >= known)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	switch (attribute) {
	case 16: /* multiprocessor count */
		*value = (int)sysconf(_SC_NPROCESSORS_ONLN);
		break;
	case 36: /* memory clock rate, kHz */
		*value = settings.memory_khz;
		break;
	case 33: /* PCI bus id */
		*value = device + 1;
		break;
	default:
		*value = attributes[attribute];
	}
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
	if (!major || !minor)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*major = DEVICE_COMPUTE_MAJOR;
	*minor = DEVICE_COMPUTE_MINOR;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetPCIBusId(char *text, int size, CUdevice device)
{
	if (!text || size < 13)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device))
		return CUDA_ERROR_INVALID_DEVICE;
	snprintf(text, (size_t)size, "0000:%02X:00.0", (unsigned int)device + 1);
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetByPCIBusId(CUdevice *device, const char *text)
{
	unsigned int domain = 0, bus, slot, function = 0;

	if (!device || !text)
		return CUDA_ERROR_INVALID_VALUE;
	if (sscanf(text, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3) {
		domain = 0;
		if (sscanf(text, "%x:%x.%x", &bus, &slot, &function) < 2)
			return CUDA_ERROR_INVALID_VALUE;
	}
	if (domain || slot || function || !device_exists((int)bus - 1))
		return CUDA_ERROR_INVALID_DEVICE;
	*device = (int)bus - 1;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
	if (!can)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device) || !device_exists(peer))
		return CUDA_ERROR_INVALID_DEVICE;
	*can = device != peer;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetP2PAttribute(int *value, int attribute, CUdevice device, CUdevice peer)
{
	enum { PERFORMANCE_RANK = 1, ACCESS_SUPPORTED = 2, NATIVE_ATOMIC_SUPPORTED = 3 };

	if (!value || attribute < PERFORMANCE_RANK || attribute > NATIVE_ATOMIC_SUPPORTED + 1)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device_exists(device) || !device_exists(peer) || device == peer)
		return CUDA_ERROR_INVALID_DEVICE;
	*value = attribute == ACCESS_SUPPORTED || attribute == NATIVE_ATOMIC_SUPPORTED;
	return CUDA_SUCCESS;
}
