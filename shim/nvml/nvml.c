// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Standing in for libnvidia-ml.so.1, for memory totals alone: a program that asks
 * NVML how much there is gets what cuMemGetInfo says. All else is forwarded to the
 * real library, as interpose.c does for the driver.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../memory_of.h"

#define EXPORT __attribute__((visibility("default")))

#define NVML_SUCCESS 0
#define NVML_ERROR_FUNCTION_NOT_FOUND 13
#define UUID_TEXT 96 /* NVML_DEVICE_UUID_V2_BUFFER_SIZE */

typedef struct nvmlDevice_st *nvmlDevice_t;

typedef struct {
	unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
	unsigned int version;
	unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

extern const char *const forwarded_names[];
extern const unsigned int forwarded_count;
extern void *driver_stub_targets[];

static struct {
	int (*memory)(nvmlDevice_t device, nvmlMemory_t *memory);
	int (*memory_v2)(nvmlDevice_t device, nvmlMemory_v2_t *memory);
	int (*uuid)(nvmlDevice_t device, char *text, unsigned int length);
} real;

static const char *const places[] = {
	"/usr/local/nvidia/lib64/libnvidia-ml.so.1",
	"/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
	"/usr/lib64/libnvidia-ml.so.1",
	"/usr/lib/wsl/lib/libnvidia-ml.so.1",
};

/* Stands for functions that this library does not have. */
static int missing(void)
{
	return NVML_ERROR_FUNCTION_NOT_FOUND;
}

static void *open_real(void)
{
	const char *path = getenv("GREENBOOST_NVML");
	void *handle = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;

	for (size_t i = 0; i < sizeof(places) / sizeof(*places) && !handle; i++)
		if (access(places[i], R_OK) == 0)
			handle = dlopen(places[i], RTLD_NOW | RTLD_LOCAL);
	return handle;
}

__attribute__((constructor(101))) static void interpose(void)
{
	void *handle = open_real();

	for (unsigned int i = 0; i < forwarded_count; i++) {
		void *found = handle ? dlsym(handle, forwarded_names[i]) : NULL;

		driver_stub_targets[i] = found ? found : (void *)missing;
	}
	if (!handle)
		return;
	*(void **)&real.memory = dlsym(handle, "nvmlDeviceGetMemoryInfo");
	*(void **)&real.memory_v2 = dlsym(handle, "nvmlDeviceGetMemoryInfo_v2");
	*(void **)&real.uuid = dlsym(handle, "nvmlDeviceGetUUID");
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "GPU-" or "MIG-" and 32 digits with dashes among them. */
static bool read_uuid(const char *text, unsigned char uuid[16])
{
	int n = 0;

	text = strchr(text, '-');
	for (; text && *text && n < 32; text++) {
		int value = digit(*text);

		if (*text == '-')
			continue;
		if (value < 0)
			return false;
		uuid[n / 2] = (unsigned char)(n % 2 ? uuid[n / 2] | value : value << 4);
		n++;
	}
	return n == 32;
}

/* What the CUDA side of this process says of the device; it is absent where it was not preloaded.
 */
static enum memory_of ask(nvmlDevice_t device, uint64_t *total, uint64_t *available)
{
	static greenboost_memory_of_fn memory_of;
	unsigned char uuid[16];
	char text[UUID_TEXT];

	if (!memory_of)
		*(void **)&memory_of = dlsym(RTLD_DEFAULT, "greenboost_memory_of");
	if (!memory_of || !real.uuid || real.uuid(device, text, sizeof(text)) ||
	    !read_uuid(text, uuid))
		return MEMORY_UNKNOWN;
	return memory_of(uuid, total, available);
}

static void answer(nvmlDevice_t device, unsigned long long *total, unsigned long long *available)
{
	uint64_t all, left;

	switch (ask(device, &all, &left)) {
	case MEMORY_WHOLE:
		*total = all;
		*available = left;
		break;
	case MEMORY_BELOW:
		*total += all;
		*available += left;
		break;
	case MEMORY_UNKNOWN:
		break;
	}
}

int nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory);
int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory);

EXPORT int nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	int result = real.memory ? real.memory(device, memory) : missing();

	if (result == NVML_SUCCESS) {
		answer(device, &memory->total, &memory->free);
		memory->used = memory->total - memory->free;
	}
	return result;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	int result = real.memory_v2 ? real.memory_v2(device, memory) : missing();
	unsigned long long total;

	if (result != NVML_SUCCESS)
		return result;
	total = memory->total;
	answer(device, &memory->total, &memory->free);
	/* What the driver keeps back is no part of what programs are promised. */
	if (memory->total != total) {
		memory->reserved = 0;
		memory->used = memory->total - memory->free;
	}
	return result;
}
