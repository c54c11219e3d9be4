/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happened when, for a trace viewer: a file of Chrome's trace events
 * (docs/trace-viewer.md). GREENBOOST_TRACE names the file, to which any number of
 * processes append. While none is written, everything here costs a load and a branch.
 */
#ifndef GREENBOOST_TRACE_H
#define GREENBOOST_TRACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "driver.h"
#include "timing.h"

struct device;
struct function;
struct hold;
struct trace_launch;

extern atomic_bool trace_on;

/* When something begins that trace_host() or trace_transfer() will tell of; 0: nothing is traced.
 */
uint64_t trace_clock(void);

static inline uint64_t trace_begin(void)
{
	return __builtin_expect(atomic_load_explicit(&trace_on, memory_order_relaxed), 0)
		       ? trace_clock()
		       : 0;
}

/* Start, if a file is asked for. */
void trace_open(struct device *device);

/* All that was noted is in the file when this returns. The device's context still lives. */
void trace_close(struct device *device);

/* A child of fork() has no writer. */
void trace_forget(void);

/*
 * The functions below do nothing where nothing is traced: began is trace_begin()'s, 0
 * otherwise. They may be called in the device's lock unless something else is said.
 */

#define TRACE_NO_CHUNK UINT32_MAX

/* What this thread did until now. text: what became of it, a constant; NULL: nothing to say. */
void trace_host(const struct device *device, uint64_t began, const char *name, uint32_t chunk,
		const char *text);

/* This thread has waited for chunks; absent[]: which, in order. */
void trace_stall(const struct device *device, uint64_t began, const uint32_t *absent,
		 uint32_t count);

/* A chunk's copy between RAM and VRAM: the marks around it, whose events are consumed. */
void trace_copy(struct device *device, struct span_of_time *time, bool up, uint32_t chunk,
		bool ahead);

/* Read from T3 or written there until now. */
void trace_transfer(const struct device *device, uint64_t began, bool fetch, uint32_t chunk,
		    bool failed);

/* Something that takes no time. bytes, address: 0: none. */
void trace_moment(const struct device *device, const char *name, uint64_t bytes, uint64_t address,
		  const char *text);

/* How many slots are used now, if that is not what was said last. In the device's lock. */
void trace_slots(struct device *device, uint32_t vram, uint32_t ram);

/*
 * A launch of a function or of a graph, or (both NULL) a copy of the program's that was looked at:
 * begins before it is known what it needs; is given to its stream, holding that (NULL: it names no
 * chunk), after trace_launch_issue(); and trace_launch_end() after it was, or failed. In no lock.
 */
struct trace_launch *trace_launch_begin(struct device *device, CUfunction f, struct function *graph,
					CUstream stream, unsigned int variant);
void trace_launch_issue(struct trace_launch *launch, const struct hold *hold, bool captured);
void trace_launch_end(struct trace_launch *launch);

#endif
