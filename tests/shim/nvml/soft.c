// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A libnvidia-ml.so.1 for tests: as many devices as SOFTNVML_UUIDS has words, in
 * that order, each of 80 GiB with 1 GiB in use and half of that kept by the driver.
 */
#include <stdlib.h>
#include <string.h>

#define GIB (1ull << 30)
#define MOST 4

struct device {
	char uuid[41];
};

static struct device devices[MOST];
static unsigned int count;

int nvmlInit_v2(void);
int nvmlDeviceGetCount_v2(unsigned int *n);
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct device **device);
int nvmlDeviceGetUUID(struct device *device, char *text, unsigned int length);
int nvmlDeviceGetMemoryInfo(struct device *device, unsigned long long memory[3]);
int nvmlDeviceGetMemoryInfo_v2(struct device *device, unsigned long long memory[5]);

int nvmlInit_v2(void)
{
	const char *text = getenv("SOFTNVML_UUIDS");

	for (count = 0; text && *text && count < MOST; count++) {
		memcpy(devices[count].uuid, text, 40);
		text += strlen(text) > 40 ? 41 : 40;
	}
	return 0;
}

int nvmlDeviceGetCount_v2(unsigned int *n)
{
	*n = count;
	return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct device **device)
{
	if (index >= count)
		return 2; /* NVML_ERROR_INVALID_ARGUMENT */
	*device = &devices[index];
	return 0;
}

int nvmlDeviceGetUUID(struct device *device, char *text, unsigned int length)
{
	if (length < sizeof(device->uuid))
		return 7; /* NVML_ERROR_INSUFFICIENT_SIZE */
	memcpy(text, device->uuid, sizeof(device->uuid));
	return 0;
}

int nvmlDeviceGetMemoryInfo(struct device *device, unsigned long long memory[3])
{
	(void)device;
	memory[0] = 80 * GIB;
	memory[1] = 79 * GIB;
	memory[2] = GIB;
	return 0;
}

int nvmlDeviceGetMemoryInfo_v2(struct device *device, unsigned long long memory[5])
{
	(void)device;
	if ((unsigned int)memory[0] != 0x02000028)
		return 25; /* NVML_ERROR_ARGUMENT_VERSION_MISMATCH */
	memory[1] = 80 * GIB;
	memory[2] = GIB / 2;
	memory[3] = 79 * GIB;
	memory[4] = GIB / 2;
	return 0;
}
