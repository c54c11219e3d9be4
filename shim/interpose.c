// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Standing in for libcuda.so.1. The library has that SONAME, so whatever asks
 * the loader for the driver gets it; the real driver is opened by absolute path,
 * which no SONAME matches.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"
#include "log.h"

struct driver driver;

static const char *const places[] = {
	"/usr/local/nvidia/lib64/libcuda.so.1",
	"/usr/lib/x86_64-linux-gnu/libcuda.so.1",
	"/usr/lib64/libcuda.so.1",
	"/usr/lib/wsl/lib/libcuda.so.1",
};

/* Stands for functions that this driver does not have. */
static CUresult missing(void)
{
	return CUDA_ERROR_NOT_FOUND;
}

static void *open_driver(void)
{
	const char *path = getenv("GREENBOOST_CUDA_DRIVER");
	void *handle = NULL;

	if (path && *path) {
		handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
		if (!handle)
			log_warn("GREENBOOST_CUDA_DRIVER: %s", dlerror());
		return handle;
	}
	for (size_t i = 0; i < sizeof(places) / sizeof(*places) && !handle; i++)
		if (access(places[i], R_OK) == 0)
			handle = dlopen(places[i], RTLD_NOW | RTLD_LOCAL);
	if (!handle)
		log_warn("no CUDA driver found; set GREENBOOST_CUDA_DRIVER to its libcuda.so.1");
	return handle;
}

/*
 * Before anything of the program runs: any function may be the first that it
 * calls, and other libraries' constructors call some.
 */
__attribute__((constructor(101))) static void interpose(void)
{
	void *handle = open_driver();

	for (unsigned int i = 0; i < driver_stub_count; i++) {
		void *real = handle ? dlsym(handle, driver_stub_names[i]) : NULL;

		driver_stub_targets[i] = real ? real : (void *)missing;
	}
	for (unsigned int i = 0; i < driver_entry_count; i++) {
		void *real = handle ? dlsym(handle, driver_entries[i].name) : NULL;

		*driver_entries[i].real = real ? real : (void *)missing;
	}
}

const char *driver_error(CUresult error)
{
	const char *name = NULL;

	if (driver.cuGetErrorName(error, &name) || !name)
		return "an unknown error";
	return name;
}

/*
 * The driver chooses among a function's versions and stream variants; if what it
 * chose is one that we stand before, ours of that very variant is the answer.
 */
static void stand_before(void **function)
{
	for (unsigned int i = 0; function && i < driver_entry_count; i++) {
		if (driver_entries[i].hook && *driver_entries[i].real == *function) {
			*function = driver_entries[i].hook;
			return;
		}
	}
}

CUresult hook_cuGetProcAddress(unsigned int variant, const char *symbol, void **pfn, int version,
			       uint64_t flags)
{
	CUresult result = driver.cuGetProcAddress(symbol, pfn, version, flags);

	(void)variant;
	if (!result)
		stand_before(pfn);
	return result;
}

CUresult hook_cuGetProcAddress_v2(unsigned int variant, const char *symbol, void **pfn, int version,
				  uint64_t flags, CUdriverProcAddressQueryResult *status)
{
	CUresult result = driver.cuGetProcAddress_v2(symbol, pfn, version, flags, status);

	(void)variant;
	if (!result)
		stand_before(pfn);
	return result;
}
