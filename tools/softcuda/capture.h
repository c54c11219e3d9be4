/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Stream capture: work that goes into a graph instead of a queue, and what must not be done then.
 */
#ifndef SOFTCUDA_CAPTURE_H
#define SOFTCUDA_CAPTURE_H

#include "event.h"
#include "stream.h"

/* Whether any capture is under way: nothing below need be asked otherwise. */
bool capture_running(void);

/* Whether a capture forbids the calling thread a call that it would not see. */
CUresult capture_forbids(void);

/* Whether a stream must not be waited for. */
CUresult capture_forbids_waiting(CUstream stream);

/* Whether a context must not be waited for: in no mode while any of its streams captures. */
CUresult capture_forbids_context(CUcontext context);

/* Captures the work if its stream captures, submits it otherwise. */
CUresult capture_submit(CUstream stream, struct work *work);

/*
 * Records an event, or makes a stream wait for one, in a capture. Without error
 * and with *captured false, the capture has nothing to do with it.
 */
CUresult capture_record(CUstream stream, CUevent event, bool *captured);
CUresult capture_wait(CUstream stream, CUevent event, bool *captured);

/* A stream is about to end. */
void capture_forget(CUstream stream);

#endif
