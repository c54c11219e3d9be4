// SPDX-License-Identifier: GPL-2.0-or-later
#include "fault.h"

#include <stdatomic.h>
#include <stdio.h>

#include "device.h"
#include "function.h"
#include "log.h"

#define ALLOCATIONS 8

struct absent {
	uint64_t base, bytes;
	uint32_t chunks, absent;
};

/* Paged allocations with chunks that no kernel can use now. Returns how many there are in all. */
static uint32_t find_absent(struct device *device, struct absent *found)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];
		uint32_t chunks = 0, absent = 0;

		/* Where the program has mapped nothing, nothing of its is missing. */
		for (uint32_t c = a->first; c < a->first + a->chunks; c++) {
			chunks += device->chunks[c].address != 0;
			absent += device->chunks[c].address && !chunk_usable(&device->chunks[c]);
		}
		if (absent && count < ALLOCATIONS)
			found[count] = (struct absent){ a->base, a->bytes, chunks, absent };
		count += absent > 0;
	}
	return count;
}

/* In no lock. */
static void say_launches(void)
{
	char line[900];
	size_t used = 0;

	for (unsigned int n = 0; n < FUNCTIONS_LAST && used < sizeof(line); n++) {
		CUstream stream;
		const struct function *f = functions_last(n, &stream);

		if (f)
			used += (size_t)snprintf(line + used, sizeof(line) - used,
						 "%s%.80s (stream %p)", used ? ", " : "",
						 function_shown(f), (void *)stream);
	}
	if (used)
		log_warn("the last launches, the latest first: %s", line);
}

void fault_say(struct device *locked)
{
	static atomic_flag said = ATOMIC_FLAG_INIT; /* or being looked into: one thread at a time
						       takes a second lock */
	static atomic_bool launches; /* are yet to be said */
	struct absent found[ALLOCATIONS];
	uint32_t count = 0;

	if (!locked && atomic_exchange(&launches, false))
		say_launches();
	if (atomic_flag_test_and_set(&said))
		return;
	for (CUdevice i = 0; i < MAX_DEVICES && !count; i++) {
		struct device *device = device_ready(i);

		if (!device)
			continue;
		if (device != locked)
			pthread_mutex_lock(&device->lock);
		count = find_absent(device, found);
		if (device != locked)
			pthread_mutex_unlock(&device->lock);
	}
	/* Nothing is missing because of us, as far as is known now. */
	if (!count) {
		atomic_flag_clear(&said);
		return;
	}
	log_warn("a kernel touched an address where nothing is (%s). Unless the program does so "
		 "without GreenBoost too, it followed a pointer that GreenBoost did not see, to "
		 "memory that was not in VRAM. What is not there now is of:",
		 driver_error(CUDA_ERROR_ILLEGAL_ADDRESS));
	for (uint32_t i = 0; i < count && i < ALLOCATIONS; i++)
		log_warn("  0x%llx-0x%llx, %u of %u chunks", (unsigned long long)found[i].base,
			 (unsigned long long)(found[i].base + found[i].bytes), found[i].absent,
			 found[i].chunks);
	if (count > ALLOCATIONS)
		log_warn("  and %u more allocations", count - ALLOCATIONS);
	log_warn("to avoid it, have what is reached through pointers in device memory stay in VRAM "
		 "(--pin), or give the program more of it (--vram), or use memory in place "
		 "(--paging mapped)");
	/* The driver is asked for names, and in no lock. */
	if (locked)
		atomic_store(&launches, true);
	else
		say_launches();
}

/* ---- where the program learns of it ---- */

CUresult hook_cuCtxSynchronize(unsigned int variant)
{
	(void)variant;
	return fault_check(driver.cuCtxSynchronize());
}

CUresult hook_cuCtxSynchronize_v2(unsigned int variant, CUcontext ctx)
{
	(void)variant;
	return fault_check(driver.cuCtxSynchronize_v2(ctx));
}

CUresult hook_cuEventSynchronize(unsigned int variant, CUevent event)
{
	(void)variant;
	return fault_check(driver.cuEventSynchronize(event));
}

CUresult hook_cuStreamSynchronize(unsigned int variant, CUstream stream)
{
	return fault_check(driver.cuStreamSynchronize[variant](stream));
}
