// SPDX-License-Identifier: GPL-2.0-or-later
#include "event.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "api.gen.h"
#include "capture.h"
#include "entry.h"
#include "stream.h"

#define KNOWN_FLAGS 7u /* blocking sync, disable timing, interprocess */
#define INTERPROCESS 4u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The work that stands for an event in a queue; it notes when it was reached. */
struct record {
	struct work work;
	_Atomic uint64_t time; /* ns; valid once the point was reached */
};

static void record_run(struct work *work, const struct place *place)
{
	struct timespec time;

	(void)place;
	clock_gettime(CLOCK_MONOTONIC, &time);
	((struct record *)work)->time = (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void record_release(struct work *work)
{
	free(work);
}

static struct record *record_create(void)
{
	struct record *record = calloc(1, sizeof *record);

	if (record)
		work_init(&record->work, CU_GRAPH_NODE_TYPE_EMPTY, "event", record_run,
			  record_release);
	return record;
}

struct point event_point(CUevent event)
{
	struct point point;

	pthread_mutex_lock(&lock);
	point = point_get(&event->point);
	pthread_mutex_unlock(&lock);
	return point;
}

/* What an event was, to be dropped; so that nothing is dropped with the lock held. */
static void replace(CUevent event, struct record *record, struct point point)
{
	struct record *old_record;
	struct point old_point;

	pthread_mutex_lock(&lock);
	old_record = event->record;
	old_point = event->point;
	event->record = record;
	event->point = point;
	pthread_mutex_unlock(&lock);
	point_put(&old_point);
	if (old_record)
		work_put(&old_record->work);
}

CUresult do_cuEventCreate(CUevent *event, unsigned int flags)
{
	struct CUevent_st *created;

	if (!event || flags & ~KNOWN_FLAGS)
		return CUDA_ERROR_INVALID_VALUE;
	if (flags & INTERPROCESS)
		return CUDA_ERROR_NOT_SUPPORTED;
	created = calloc(1, sizeof *created);
	if (!created)
		return CUDA_ERROR_OUT_OF_MEMORY;
	created->kind = KIND_EVENT;
	created->flags = flags;
	created->context = context_current();
	*event = created;
	return CUDA_SUCCESS;
}

CUresult do_cuEventDestroy_v2(CUevent event)
{
	if (!is_kind(event, KIND_EVENT))
		return CUDA_ERROR_INVALID_HANDLE;
	event->kind = KIND_NONE;
	replace(event, NULL, (struct point){ 0 });
	free(event->deps);
	free(event);
	return CUDA_SUCCESS;
}

CUresult event_record(CUevent event, struct queue *queue)
{
	struct record *record = record_create();
	struct point end;
	CUresult error;

	if (!record)
		return CUDA_ERROR_OUT_OF_MEMORY;
	error = queue_submit(queue, &record->work, NULL, &end);
	if (error)
		work_put(&record->work);
	else
		replace(event, record, end);
	return error;
}

CUresult do_cuEventRecord(bool per_thread, CUevent event, CUstream handle)
{
	CUstream stream = stream_resolve(handle, per_thread);

	if (!stream || !is_kind(event, KIND_EVENT) || event->context != stream->context)
		return CUDA_ERROR_INVALID_HANDLE;
	if (capture_running() || event->capture) {
		bool captured;
		CUresult error = capture_record(stream, event, &captured);

		if (error || captured)
			return error;
	}
	return event_record(event, stream->queue);
}

CUresult do_cuEventRecordWithFlags(bool per_thread, CUevent event, CUstream stream,
				   unsigned int flags)
{
	static atomic_flag said = ATOMIC_FLAG_INIT;

	if (flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	if (flags && capture_running())
		return entry_unsupported("recording an external event in a capture", &said);
	return do_cuEventRecord(per_thread, event, stream);
}

CUresult do_cuEventQuery(CUevent event)
{
	struct point point;
	bool reached;

	if (!is_kind(event, KIND_EVENT))
		return CUDA_ERROR_INVALID_HANDLE;
	if (event->capture)
		return CUDA_ERROR_CAPTURED_EVENT;
	point = event_point(event);
	reached = point_reached(&point);
	point_put(&point);
	return reached ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult do_cuEventSynchronize(CUevent event)
{
	struct point point;

	if (!is_kind(event, KIND_EVENT))
		return CUDA_ERROR_INVALID_HANDLE;
	if (event->capture)
		return CUDA_ERROR_CAPTURED_EVENT;
	point = event_point(event);
	point_wait(&point);
	point_put(&point);
	return CUDA_SUCCESS;
}

/* The time of an event's last record; INVALID_HANDLE, where it has none, as the driver says. */
static CUresult event_time(CUevent event, uint64_t *time)
{
	CUresult error = CUDA_ERROR_INVALID_HANDLE;

	if (!is_kind(event, KIND_EVENT) || event->flags & CU_EVENT_DISABLE_TIMING)
		return error;
	pthread_mutex_lock(&lock);
	if (event->record)
		error = point_reached(&event->point) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
	if (!error)
		*time = event->record->time;
	pthread_mutex_unlock(&lock);
	return error;
}

CUresult do_cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
	uint64_t from, to;
	CUresult error;

	if (!milliseconds)
		return CUDA_ERROR_INVALID_VALUE;
	error = event_time(start, &from);
	if (!error)
		error = event_time(end, &to);
	if (!error)
		*milliseconds = (float)((double)(int64_t)(to - from) * 1e-6);
	return error;
}

CUresult do_cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end)
{
	return do_cuEventElapsedTime(milliseconds, start, end);
}
