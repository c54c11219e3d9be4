// SPDX-License-Identifier: GPL-2.0-or-later
/* What happens is noted here, by whoever does it; trace_write.c writes it down. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "function.h"
#include "log.h"
#include "trace_event.h"

/* Chunks are named as ranges, so many at most; how many there were is said beside it. */
#define RANGES_MOST 48

struct trace_launch {
	struct device *device;
	CUstream stream;
	unsigned int variant;
	struct event *event;
};

static struct {
	pthread_mutex_t lock; /* held while a device is opened or closed */
	struct traced *_Atomic devices[MAX_DEVICES]; /* of those whose events are taken */
	bool started;
} tracer = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
};

atomic_bool trace_on;

uint64_t trace_clock(void)
{
	return spool_now();
}

static struct traced *traced_of(const struct device *device)
{
	struct traced *traced;

	if (!atomic_load_explicit(&trace_on, memory_order_relaxed))
		return NULL;
	traced = atomic_load_explicit(&tracer.devices[device->ordinal], memory_order_acquire);
	return traced && traced->device == device ? traced : NULL;
}

/* NULL: the device is not traced, or there is no memory; then what happens is not in the trace. */
static struct event *event_new(const struct device *device, enum what what, uint64_t began,
			       uint32_t ranges)
{
	struct traced *traced = traced_of(device);
	struct event *e = traced ? malloc(sizeof(*e) + ranges * sizeof(e->ranges[0])) : NULL;

	if (!e)
		return NULL;
	*e = (struct event){
		.what = what,
		.traced = traced,
		.began = began,
		.ended = spool_now(),
		.thread = gettid(),
		.chunk = TRACE_NO_CHUNK,
	};
	return e;
}

static void add(struct event *e)
{
	spool_add(&trace_spool, &e->entry, true);
}

/* chunks[] is in order. */
static void note_ranges(struct event *e, const uint32_t *chunks, uint32_t count)
{
	e->count = count;
	for (uint32_t i = 0; i < count; i++) {
		struct range *last = e->range_count ? &e->ranges[e->range_count - 1] : NULL;

		if (last && chunks[i] == last->last + 1)
			last->last = chunks[i];
		else if (e->range_count == RANGES_MOST)
			e->more = true;
		else
			e->ranges[e->range_count++] = (struct range){ chunks[i], chunks[i] };
	}
}

void trace_host(const struct device *device, uint64_t began, const char *name, uint32_t chunk,
		const char *text)
{
	struct event *e = began ? event_new(device, HOST, began, 0) : NULL;

	if (!e)
		return;
	e->name = name;
	e->chunk = chunk;
	e->text = text;
	add(e);
}

void trace_stall(const struct device *device, uint64_t began, const uint32_t *absent,
		 uint32_t count)
{
	struct event *e = began ? event_new(device, STALL, began, RANGES_MOST) : NULL;

	if (!e)
		return;
	note_ranges(e, absent, count);
	add(e);
}

void trace_copy(struct device *device, struct span_of_time *time, bool up, uint32_t chunk,
		bool ahead)
{
	struct event *e = event_new(device, CHUNK_COPY, trace_begin(), 0);

	if (!e) {
		timing_put(&device->mover.timing, time->before);
		timing_put(&device->mover.timing, time->after);
		return;
	}
	e->time = *time;
	e->up = up;
	e->chunk = chunk;
	e->ahead = ahead;
	add(e);
}

void trace_transfer(const struct device *device, uint64_t began, bool fetch, uint32_t chunk,
		    bool failed)
{
	struct event *e = began ? event_new(device, TRANSFER, began, 0) : NULL;

	if (!e)
		return;
	e->up = fetch;
	e->chunk = chunk;
	e->failed = failed;
	add(e);
}

void trace_moment(const struct device *device, const char *name, uint64_t bytes, uint64_t address,
		  const char *text)
{
	uint64_t now = trace_begin();
	struct event *e = now ? event_new(device, MOMENT, now, 0) : NULL;

	if (!e)
		return;
	e->name = name;
	e->bytes = bytes;
	e->address = address;
	e->text = text;
	add(e);
}

void trace_slots(struct device *device, uint32_t vram, uint32_t ram)
{
	struct traced *traced = traced_of(device);
	struct event *e;

	if (!traced || (traced->slots_said && traced->vram == vram && traced->ram == ram))
		return;
	e = event_new(device, SLOTS, spool_now(), 0);
	if (!e)
		return;
	traced->slots_said = true;
	traced->vram = e->vram = vram;
	traced->ram = e->ram = ram;
	add(e);
}

struct trace_launch *trace_launch_begin(struct device *device, CUfunction f, struct function *graph,
					CUstream stream, unsigned int variant)
{
	uint64_t began = trace_begin();
	struct trace_launch *launch;
	struct event *e;

	if (!began || !traced_of(device))
		return NULL;
	launch = malloc(sizeof(*launch));
	e = launch ? event_new(device, LAUNCH, began, RANGES_MOST) : NULL;
	if (e && f) {
		e->function = function_of(f);
		if (!e->function) {
			free(e);
			e = NULL;
		}
	}
	if (!e) {
		free(launch);
		return NULL;
	}
	if (graph)
		e->function = graph;
	e->stream = stream_key(stream, variant);
	e->failed = true; /* until it is issued */
	*launch = (struct trace_launch){ device, stream, variant, e };
	return launch;
}

void trace_launch_issue(struct trace_launch *launch, const struct hold *hold, bool captured)
{
	struct event *e = launch->event;

	if (hold) {
		note_ranges(e, hold->chunks, hold->count);
		e->absent = hold->absent;
		e->arriving = hold->arriving;
	}
	e->failed = false;
	e->captured = captured;
	/* In a captured stream an event would become a part of the graph. */
	if (!captured)
		e->time.before =
			timing_mark(&launch->device->mover.timing, launch->stream, launch->variant);
}

void trace_launch_end(struct trace_launch *launch)
{
	struct event *e = launch->event;

	if (e->time.before)
		e->time.after =
			timing_mark(&launch->device->mover.timing, launch->stream, launch->variant);
	e->ended = spool_now();
	/* A trace with holes is worth little: the program waits if the writer is far behind. */
	spool_wait_for_room(&trace_spool);
	add(e);
	free(launch);
}

/* ---- beginning and end ---- */

/* False: no trace is asked for, or it cannot be. In tracer.lock. */
static bool start(void)
{
	const char *path = getenv("GREENBOOST_TRACE");
	struct stat status;
	int fd;

	if (tracer.started)
		return !trace_spool.failed && !trace_spool.closing;
	if (!path || !*path)
		return false;
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	/* Whoever comes first begins the array; it need not have an end. */
	if (fd < 0 || flock(fd, LOCK_EX) || fstat(fd, &status) ||
	    (!status.st_size && write(fd, "[\n", 2) != 2) || flock(fd, LOCK_UN)) {
		log_warn("not traced: GREENBOOST_TRACE=%s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return false;
	}
	if (!spool_open(&trace_spool, fd))
		return false;
	trace_write_process();
	tracer.started = spool_start(&trace_spool);
	return tracer.started;
}

void trace_open(struct device *device)
{
	struct traced *traced = NULL;

	pthread_mutex_lock(&tracer.lock);
	if (device->ordinal < MAX_DEVICES && start())
		traced = calloc(1, sizeof(*traced));
	if (traced) {
		traced->device = device;
		traced->chunk = device->chunk;
		atomic_store(&tracer.devices[device->ordinal], traced);
		atomic_store(&trace_on, true);
	}
	pthread_mutex_unlock(&tracer.lock);
	if (traced)
		trace_moment(device, "tiers begin", device->limit, 0, NULL);
}

void trace_close(struct device *device)
{
	bool any = false;

	pthread_mutex_lock(&tracer.lock);
	/* What it is made of stays: other threads may just be looking at it. */
	if (traced_of(device)) {
		atomic_store(&tracer.devices[device->ordinal], NULL);
		for (int i = 0; i < MAX_DEVICES; i++)
			any = any || atomic_load(&tracer.devices[i]);
		atomic_store(&trace_on, any);
		spool_drain(&trace_spool, false);
	}
	pthread_mutex_unlock(&tracer.lock);
}

void trace_forget(void)
{
	atomic_store(&trace_on, false);
	tracer.started = false;
}

__attribute__((destructor)) static void at_exit(void)
{
	if (!atomic_exchange(&trace_on, false))
		return;
	spool_drain(&trace_spool, true);
}
