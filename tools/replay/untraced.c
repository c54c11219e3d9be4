// SPDX-License-Identifier: GPL-2.0-or-later
/* The shim's trace (trace.h) where there is none: the replay has its own figures. No kernel goes
 * wrong there. */
#include "fault.h"
#include "trace.h"

atomic_bool trace_on;

void fault_say(struct device *locked)
{
	(void)locked;
}

uint64_t trace_clock(void)
{
	return 0;
}

void trace_host(const struct device *device, uint64_t began, const char *name, uint32_t chunk,
		const char *text)
{
	(void)device, (void)began, (void)name, (void)chunk, (void)text;
}

void trace_stall(const struct device *device, uint64_t began, const uint32_t *absent,
		 uint32_t count)
{
	(void)device, (void)began, (void)absent, (void)count;
}

void trace_copy(struct device *device, struct span_of_time *time, bool up, uint32_t chunk,
		bool ahead)
{
	(void)device, (void)time, (void)up, (void)chunk, (void)ahead;
}

void trace_transfer(const struct device *device, uint64_t began, bool fetch, uint32_t chunk,
		    bool failed)
{
	(void)device, (void)began, (void)fetch, (void)chunk, (void)failed;
}

void trace_moment(const struct device *device, const char *name, uint64_t bytes, uint64_t address,
		  const char *text)
{
	(void)device, (void)name, (void)bytes, (void)address, (void)text;
}

void trace_slots(struct device *device, uint32_t vram, uint32_t ram)
{
	(void)device, (void)vram, (void)ram;
}
