// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "function.h"
#include "log.h"
#include "residency.h"
#include "spool.h"

enum what { LAUNCH, COPY, ALLOCATE, FREE };

struct object {
	uint32_t allocation;
	bool overwritten, open;
	uint64_t begin, end, named;
};

struct record {
	struct spool_entry entry; /* first: the spool frees it */
	enum what what;
	bool captured;
	uint64_t ns;
	uint64_t stream;
	struct function *function;
	struct span_of_time time;
	uint64_t address, bytes; /* of an allocation */
	uint32_t count;
	struct object objects[];
};

static void begin_writing(void);
static void write_record(struct spool_entry *entry);

static struct {
	struct device *device;
	uint64_t began;
	struct spool spool;
} recorder = {
	.spool = SPOOL(.what = "recording", .line_most = 256, .write = write_record,
		       .begin = begin_writing),
};

#define put(...) spool_put(&recorder.spool, __VA_ARGS__)

atomic_bool record_on;

/* ---- the writer ---- */

static void begin_writing(void)
{
	/* Captures of other threads must not forbid what this one does. */
	int relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;

	driver.cuCtxSetCurrent(recorder.device->context);
	driver.cuThreadExchangeStreamCaptureMode(&relaxed);
}

static double microseconds(uint64_t ns)
{
	return (double)(ns - recorder.began) / 1e3;
}

static void put_objects(const struct record *r)
{
	put(",\"o\":[");
	for (uint32_t i = 0; i < r->count; i++) {
		const struct object *o = &r->objects[i];

		spool_line(&recorder.spool);
		put("%s[%" PRIu32 ",%" PRIu64 ",%" PRIu64, i ? "," : "", o->allocation, o->begin,
		    o->end);
		if (o->overwritten)
			put(",\"w\"");
		else if (o->open)
			put(",\"o\",%" PRIu64, o->named);
		put("]");
	}
	put("]");
}

/* How long the device had it, microseconds; negative if that is not known. */
static double gpu_time(struct record *r)
{
	float ms = -1;

	if (r->time.before && r->time.after &&
	    (driver.cuEventSynchronize(r->time.after) ||
	     driver.cuEventElapsedTime(&ms, r->time.before, r->time.after)))
		ms = -1;
	timing_put(&recorder.device->mover.timing, r->time.before);
	timing_put(&recorder.device->mover.timing, r->time.after);
	return ms < 0 ? -1 : 1000.0 * (double)ms;
}

static void write_record(struct spool_entry *entry)
{
	struct record *r = (struct record *)entry;
	struct function *f = r->function;
	double t = microseconds(r->ns), gpu_us = gpu_time(r);

	switch (r->what) {
	case ALLOCATE:
		put("{\"op\":\"alloc\",\"t\":%.1f,\"a\":%" PRIu32 ",\"bytes\":%" PRIu64
		    ",\"address\":%" PRIu64 "}\n",
		    t, r->objects[0].allocation, r->bytes, r->address);
		return;
	case FREE:
		put("{\"op\":\"free\",\"t\":%.1f,\"a\":%" PRIu32 "}\n", t,
		    r->objects[0].allocation);
		return;
	case LAUNCH:
		if (!f->recorded) {
			put("{\"op\":\"function\",\"f\":%" PRIu32 ",\"name\":", f->number);
			spool_put_text(&recorder.spool, f->name);
			put("}\n");
			f->recorded = true;
		}
		put("{\"op\":\"launch\",\"t\":%.1f,\"f\":%" PRIu32, t, f->number);
		break;
	case COPY:
		put("{\"op\":\"copy\",\"t\":%.1f", t);
		break;
	}
	if (r->stream)
		put(",\"s\":%" PRIu64, r->stream);
	if (r->captured)
		put(",\"captured\":true");
	if (gpu_us >= 0)
		put(",\"gpu\":%.1f", gpu_us);
	if (r->count)
		put_objects(r);
	put("}\n");
}

/* ---- what happens ---- */

static struct record *record_new(enum what what, uint32_t count)
{
	struct record *r = malloc(sizeof(*r) + count * sizeof(r->objects[0]));

	if (!r) {
		atomic_store(&record_on, false);
		log_warn("recording has stopped: no memory");
		return NULL;
	}
	*r = (struct record){ .what = what, .ns = spool_now(), .count = count };
	return r;
}

static bool recorded(const struct device *device)
{
	return atomic_load_explicit(&record_on, memory_order_relaxed) && recorder.device == device;
}

static void record_range(const struct device *device, const struct allocation *a, enum what what)
{
	struct record *r = recorded(device) ? record_new(what, 1) : NULL;

	if (!r)
		return;
	r->address = a->base;
	r->bytes = a->bytes;
	r->objects[0].allocation = a->number;
	spool_add(&recorder.spool, &r->entry, true);
}

void record_allocation(const struct device *device, const struct allocation *allocation)
{
	record_range(device, allocation, ALLOCATE);
}

void record_free(const struct device *device, const struct allocation *allocation)
{
	record_range(device, allocation, FREE);
}

struct record *record_begin(const struct device *device, CUfunction f, struct function *graph,
			    const struct span *spans, uint32_t count, CUstream stream,
			    unsigned int variant, bool captured)
{
	struct record *r = recorded(device) ? record_new(f || graph ? LAUNCH : COPY, count) : NULL;

	if (!r)
		return NULL;
	r->captured = captured;
	r->stream = stream_key(stream, variant);
	r->function = f ? function_of(f) : graph;
	if (f && !r->function) {
		free(r);
		return NULL;
	}
	for (uint32_t i = 0; i < count; i++)
		r->objects[i] = (struct object){
			.allocation = spans[i].allocation->number,
			.overwritten = spans[i].overwritten,
			.open = spans[i].open,
			.begin = spans[i].begin,
			.end = spans[i].end,
			.named = spans[i].named,
		};
	/* In a captured stream an event would become a part of the graph. */
	if (!captured)
		r->time.before = timing_mark(&recorder.device->mover.timing, stream, variant);
	spool_wait_for_room(&recorder.spool);
	spool_add(&recorder.spool, &r->entry, false);
	return r;
}

void record_end(struct record *r, CUstream stream, unsigned int variant)
{
	if (r->time.before)
		r->time.after = timing_mark(&recorder.device->mover.timing, stream, variant);
	spool_end(&recorder.spool, &r->entry);
}

/* ---- beginning and end ---- */

bool record_open(struct device *device)
{
	const char *path = getenv("GREENBOOST_RECORD");
	int fd;

	if (!path || !*path || recorder.device)
		return false;
	/* Appended to: sessions one after the other each begin with a header. */
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB)) {
		log_warn("not recorded: GREENBOOST_RECORD=%s: %s", path,
			 errno == EWOULDBLOCK ? "another process is being recorded there"
					      : strerror(errno));
		if (fd >= 0)
			close(fd);
		return false;
	}
	recorder.device = device;
	recorder.began = spool_now();
	if (!spool_open(&recorder.spool, fd))
		return false;
	put("{\"greenboost_trace\":1,\"program\":");
	spool_put_text(&recorder.spool, program_invocation_short_name);
	put(",\"chunk\":%zu,\"vram\":%" PRIu64 ",\"clock_ns\":%" PRIu64 "}\n", device->chunk,
	    device->limit, recorder.began);
	if (!spool_start(&recorder.spool))
		return false;
	atomic_store(&record_on, true);
	return true;
}

void record_close(const struct device *device)
{
	if (!recorded(device))
		return;
	atomic_store(&record_on, false);
	spool_drain(&recorder.spool, true);
}

void record_forget(void)
{
	atomic_store(&record_on, false);
}

__attribute__((destructor)) static void at_exit(void)
{
	record_close(recorder.device);
}
