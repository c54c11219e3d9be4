/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the program did, as a file of JSON lines (docs/trace.md) that tools/replay
 * runs against the predictor. GREENBOOST_RECORD names the file; one device of one
 * process is recorded. Launches are timed by events before and behind them, which a
 * thread of its own reads and writes down.
 */
#ifndef GREENBOOST_RECORD_H
#define GREENBOOST_RECORD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "alloc_map.h"
#include "driver.h"

struct device;
struct function;
struct record;
struct span;

extern atomic_bool record_on;

/* Start, if a file is asked for. True: this device is recorded, so all must be looked at. */
bool record_open(struct device *device);

/* All that was recorded is in the file when this returns. The device's context still lives. */
void record_close(const struct device *device);

/* A child of fork() has no writer. */
void record_forget(void);

/* In the device's lock. */
void record_allocation(const struct device *device, const struct allocation *allocation);
void record_free(const struct device *device, const struct allocation *allocation);

/*
 * A launch of a function or of a graph, or (both NULL) a copy is about to be given to the stream;
 * record_end() after it was. NULL: not recorded. Called in no lock; waits for the writer if it is
 * far behind, as a trace with holes is worth nothing.
 */
struct record *record_begin(const struct device *device, CUfunction f, struct function *graph,
			    const struct span *spans, uint32_t count, CUstream stream,
			    unsigned int variant, bool captured);
void record_end(struct record *record, CUstream stream, unsigned int variant);

#endif
