// SPDX-License-Identifier: GPL-2.0-or-later
#include "entry.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "api.gen.h"
#include "capture.h"
#include "context.h"
#include "device.h"
#include "fault.h"
#include "settings.h"
#include "space.h"
#include "vram.h"
#include "work.h"

#define DRIVER_VERSION 13000

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool initialised;

static atomic_bool forked;

static void after_fork(void)
{
	forked = true;
}

static CUresult initialise(void)
{
	CUresult error;

	if (!settings_load())
		return CUDA_ERROR_INVALID_VALUE;
	if (!settings.devices)
		return CUDA_ERROR_NO_DEVICE;
	error = space_init();
	if (!error)
		error = vram_init(settings.devices, settings.vram_bytes);
	if (!error)
		error = devices_init(settings.devices);
	if (error)
		return error;
	pthread_atfork(NULL, NULL, after_fork);
	fault_init();
	return CUDA_SUCCESS;
}

bool entry_forked(void)
{
	return forked;
}

CUresult do_cuInit(unsigned int flags)
{
	CUresult error = CUDA_SUCCESS;

	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (forked)
		return CUDA_ERROR_NOT_INITIALIZED;
	pthread_mutex_lock(&init_lock);
	if (!initialised) {
		error = initialise();
		initialised = !error;
	}
	pthread_mutex_unlock(&init_lock);
	return error;
}

CUresult do_cuDriverGetVersion(int *version)
{
	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	*version = DRIVER_VERSION;
	return CUDA_SUCCESS;
}

CUresult entry_check(enum need need)
{
	if (need == NEED_NOTHING)
		return CUDA_SUCCESS;
	if (!initialised || forked)
		return CUDA_ERROR_NOT_INITIALIZED;
	/* A stream that waits for itself would wait for ever. */
	if (work_current())
		return CUDA_ERROR_NOT_PERMITTED;
	if (need == NEED_INIT)
		return CUDA_SUCCESS;
	if (!context_current())
		return CUDA_ERROR_INVALID_CONTEXT;
	if (context_current()->destroyed)
		return CUDA_ERROR_CONTEXT_IS_DESTROYED;
	if (fault_error())
		return fault_error();
	return need == NEED_UNCAPTURED ? capture_forbids() : CUDA_SUCCESS;
}

CUresult entry_result(enum need need, CUresult result)
{
	return result || need < NEED_CONTEXT ? result : fault_error();
}

CUresult entry_unsupported(const char *name, atomic_flag *said)
{
	if (!atomic_flag_test_and_set(said))
		fprintf(stderr, "softcuda: %s is not supported\n", name);
	return CUDA_ERROR_NOT_SUPPORTED;
}
