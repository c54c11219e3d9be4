/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The real driver, opened by absolute path, and its functions that the shim calls. */
#ifndef GREENBOOST_DRIVER_H
#define GREENBOOST_DRIVER_H

#include "cuda_abi.h"
#include "driver.gen.h"

extern struct driver driver;

/* A row of hooks.def: where the real function goes, and what stands before it (NULL: nothing). */
struct driver_entry {
	const char *name;
	void **real;
	void *hook;
};

extern const struct driver_entry driver_entries[];
extern const unsigned int driver_entry_count;
extern const char *const driver_stub_names[];
extern const unsigned int driver_stub_count;
extern void *driver_stub_targets[];

const char *driver_error(CUresult error);

/*
 * Which calls the driver makes on behalf of a stream differ when the program
 * was built for per-thread default streams: variant 1 (hooks.def).
 */
static inline CUresult driver_event_record(CUevent event, CUstream stream, unsigned int variant)
{
	return variant ? driver.cuEventRecord_ptsz(event, stream)
		       : driver.cuEventRecord(event, stream);
}

/* CU_STREAM_CAPTURE_STATUS_*; NONE also where the driver does not answer. */
static inline int driver_capture_status(CUstream stream, unsigned int variant)
{
	int status = CU_STREAM_CAPTURE_STATUS_NONE;

	if (variant)
		driver.cuStreamIsCapturing_ptsz(stream, &status);
	else
		driver.cuStreamIsCapturing(stream, &status);
	return status;
}

static inline CUresult driver_stream_wait(CUstream stream, CUevent event, unsigned int variant)
{
	return variant ? driver.cuStreamWaitEvent_ptsz(stream, event, 0)
		       : driver.cuStreamWaitEvent(stream, event, 0);
}

#endif
