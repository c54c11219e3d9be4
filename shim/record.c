// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "residency.h"
#include "thread.h"

/* Records that may wait for the writer; the driver's launch queue is far shorter. */
#define QUEUE_MOST 32768
#define BUFFER_BYTES (256 << 10)
/* A line is at most this long but for its objects and names. */
#define LINE_MOST 256
/* An idle writer writes what it has, so that a killed program leaves nearly all of it. */
#define IDLE_NS 100000000
/* At the end of the program the writer has this long to finish. */
#define END_SECONDS 5

#define FUNCTION_BUCKETS 4096

enum what { LAUNCH, COPY, ALLOCATE, FREE };

struct object {
	uint32_t allocation;
	bool overwritten, open;
	uint64_t begin, end, named;
};

struct record {
	struct record *next;
	enum what what;
	bool ended; /* given to the stream; guarded by the recorder's lock */
	bool captured;
	uint64_t ns;
	uint64_t stream;
	const struct function *function;
	CUevent before, after; /* NULL: not timed */
	uint64_t address, bytes; /* of an allocation */
	uint32_t count;
	struct object objects[];
};

struct function {
	CUfunction handle;
	struct function *next; /* in its bucket */
	uint32_t number;
	bool written; /* the writer's: its name is in the file */
	char name[];
};

static struct {
	const struct device *device;
	int fd;
	uint64_t began;
	pthread_t thread;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	struct record *first, **last;
	uint32_t waiting;
	bool closing, finished;
	CUevent *spare; /* events nobody uses */
	size_t spare_count, spare_room;
	struct function *functions[FUNCTION_BUCKETS];
	uint32_t function_count;

	char *buffer; /* the writer's */
	size_t used;
	bool failed;
} recorder = {
	.fd = -1,
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.changed = PTHREAD_COND_INITIALIZER,
	.last = &recorder.first,
};

atomic_bool record_on;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the writer ---- */

static void flush(void)
{
	size_t at = 0;

	while (!recorder.failed && at < recorder.used) {
		ssize_t n = write(recorder.fd, recorder.buffer + at, recorder.used - at);

		if (n < 0 && errno != EINTR) {
			log_warn("recording has stopped: %s", strerror(errno));
			recorder.failed = true;
		}
		at += n > 0 ? (size_t)n : 0;
	}
	recorder.used = 0;
}

__attribute__((format(printf, 1, 2))) static void put(const char *format, ...)
{
	va_list args;

	if (BUFFER_BYTES - recorder.used < LINE_MOST)
		flush();
	va_start(args, format);
	/* Never cut: whoever puts more than LINE_MOST at once puts it by put_text(). */
	recorder.used += (size_t)vsnprintf(recorder.buffer + recorder.used,
					   BUFFER_BYTES - recorder.used, format, args);
	va_end(args);
}

/* A string of JSON: what would need escaping is not worth it. */
static void put_text(const char *text)
{
	put("\"");
	for (; *text; text++) {
		if (BUFFER_BYTES - recorder.used < LINE_MOST)
			flush();
		recorder.buffer[recorder.used++] =
			*text < ' ' || *text > '~' || *text == '"' || *text == '\\' ? '?' : *text;
	}
	put("\"");
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

static void write_record(const struct record *r, float gpu_us)
{
	double t = microseconds(r->ns);
	struct function *f = (struct function *)r->function;

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
		if (!f->written) {
			put("{\"op\":\"function\",\"f\":%" PRIu32 ",\"name\":", f->number);
			put_text(f->name);
			put("}\n");
			f->written = true;
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
		put(",\"gpu\":%.1f", (double)gpu_us);
	if (r->count)
		put_objects(r);
	put("}\n");
}

/* The next record that has been given to its stream; NULL: there will be none. */
static struct record *next_record(void)
{
	struct record *r;

	pthread_mutex_lock(&recorder.lock);
	for (;;) {
		struct timespec until;

		r = recorder.first;
		/* At the end nobody waits for a launch that another thread is just making. */
		if ((r && r->ended) || recorder.closing)
			break;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += IDLE_NS;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		if (pthread_cond_timedwait(&recorder.changed, &recorder.lock, &until)) {
			pthread_mutex_unlock(&recorder.lock);
			flush();
			pthread_mutex_lock(&recorder.lock);
		}
	}
	if (r && !r->ended)
		r = NULL;
	if (r) {
		recorder.first = r->next;
		if (!recorder.first)
			recorder.last = &recorder.first;
		recorder.waiting--;
		pthread_cond_broadcast(&recorder.changed);
	}
	pthread_mutex_unlock(&recorder.lock);
	return r;
}

static void put_event(CUevent event)
{
	if (!event)
		return;
	pthread_mutex_lock(&recorder.lock);
	if (recorder.spare_count == recorder.spare_room) {
		size_t room = recorder.spare_room ? 2 * recorder.spare_room : 256;
		CUevent *grown = realloc(recorder.spare, room * sizeof(*grown));

		if (grown) {
			recorder.spare = grown;
			recorder.spare_room = room;
		}
	}
	if (recorder.spare_count < recorder.spare_room) {
		recorder.spare[recorder.spare_count++] = event;
		event = NULL;
	}
	pthread_mutex_unlock(&recorder.lock);
	if (event)
		driver.cuEventDestroy_v2(event);
}

static void *writer_thread(void *arg)
{
	/* Captures of other threads must not forbid what this one does. */
	int relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
	struct record *r;

	(void)arg;
	pthread_setname_np(pthread_self(), "greenboost-rec");
	driver.cuCtxSetCurrent(recorder.device->context);
	driver.cuThreadExchangeStreamCaptureMode(&relaxed);
	while ((r = next_record())) {
		float ms = -1;

		if (r->before && r->after &&
		    (driver.cuEventSynchronize(r->after) ||
		     driver.cuEventElapsedTime(&ms, r->before, r->after)))
			ms = -1;
		write_record(r, ms < 0 ? -1 : 1000 * ms);
		put_event(r->before);
		put_event(r->after);
		free(r);
	}
	flush();
	pthread_mutex_lock(&recorder.lock);
	recorder.finished = true;
	pthread_cond_broadcast(&recorder.changed);
	pthread_mutex_unlock(&recorder.lock);
	return NULL;
}

/* ---- what happens ---- */

static CUevent take_event(void)
{
	CUevent event = NULL;

	pthread_mutex_lock(&recorder.lock);
	if (recorder.spare_count)
		event = recorder.spare[--recorder.spare_count];
	pthread_mutex_unlock(&recorder.lock);
	/* Blocking: the writer is to sleep meanwhile, not to spin. */
	if (!event && driver.cuEventCreate(&event, CU_EVENT_BLOCKING_SYNC))
		return NULL;
	return event;
}

static const struct function *function_of(CUfunction f)
{
	struct function **bucket = &recorder.functions[((uintptr_t)f >> 4) % FUNCTION_BUCKETS];
	struct function *known, *made;
	const char *name = NULL;

	pthread_mutex_lock(&recorder.lock);
	for (known = *bucket; known && known->handle != f; known = known->next)
		;
	pthread_mutex_unlock(&recorder.lock);
	if (known)
		return known;
	if (driver.cuKernelGetName(&name, (CUkernel)f) || !name)
		if (driver.cuFuncGetName(&name, f) || !name)
			name = "";
	made = malloc(sizeof(*made) + strlen(name) + 1);
	if (!made)
		return NULL;
	*made = (struct function){ .handle = f };
	strcpy(made->name, name);
	pthread_mutex_lock(&recorder.lock);
	for (known = *bucket; known && known->handle != f; known = known->next)
		;
	if (!known) {
		made->number = recorder.function_count++;
		made->next = *bucket;
		*bucket = made;
	}
	pthread_mutex_unlock(&recorder.lock);
	if (known)
		free(made);
	return known ? known : made;
}

static struct record *record_new(enum what what, uint32_t count)
{
	struct record *r = malloc(sizeof(*r) + count * sizeof(r->objects[0]));

	if (!r) {
		atomic_store(&record_on, false);
		log_warn("recording has stopped: no memory");
		return NULL;
	}
	*r = (struct record){ .what = what, .ns = now_ns(), .count = count };
	return r;
}

static void enqueue(struct record *r)
{
	pthread_mutex_lock(&recorder.lock);
	*recorder.last = r;
	recorder.last = &r->next;
	recorder.waiting++;
	pthread_cond_broadcast(&recorder.changed);
	pthread_mutex_unlock(&recorder.lock);
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
	r->ended = true;
	r->address = a->base;
	r->bytes = a->bytes;
	r->objects[0].allocation = a->number;
	enqueue(r);
}

void record_allocation(const struct device *device, const struct allocation *allocation)
{
	record_range(device, allocation, ALLOCATE);
}

void record_free(const struct device *device, const struct allocation *allocation)
{
	record_range(device, allocation, FREE);
}

struct record *record_begin(const struct device *device, CUfunction f, const struct span *spans,
			    uint32_t count, CUstream stream, unsigned int variant, bool captured)
{
	struct record *r = recorded(device) ? record_new(f ? LAUNCH : COPY, count) : NULL;

	if (!r)
		return NULL;
	r->captured = captured;
	r->stream = stream_key(stream, variant);
	r->function = f ? function_of(f) : NULL;
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
	if (!captured) {
		r->before = take_event();
		if (r->before && driver_event_record(r->before, stream, variant)) {
			put_event(r->before);
			r->before = NULL;
		}
	}
	pthread_mutex_lock(&recorder.lock);
	while (recorder.waiting >= QUEUE_MOST && !recorder.finished)
		pthread_cond_wait(&recorder.changed, &recorder.lock);
	pthread_mutex_unlock(&recorder.lock);
	enqueue(r);
	return r;
}

void record_end(struct record *r, CUstream stream, unsigned int variant)
{
	if (r->before) {
		r->after = take_event();
		if (r->after && driver_event_record(r->after, stream, variant)) {
			put_event(r->after);
			r->after = NULL;
		}
	}
	pthread_mutex_lock(&recorder.lock);
	r->ended = true;
	pthread_cond_broadcast(&recorder.changed);
	pthread_mutex_unlock(&recorder.lock);
}

/* ---- beginning and end ---- */

bool record_open(struct device *device)
{
	const char *path = getenv("GREENBOOST_RECORD");

	if (!path || !*path || recorder.device)
		return false;
	/* Appended to: sessions one after the other each begin with a header. */
	recorder.fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	recorder.buffer = malloc(BUFFER_BYTES);
	if (recorder.fd < 0 || !recorder.buffer || flock(recorder.fd, LOCK_EX | LOCK_NB)) {
		log_warn("not recorded: GREENBOOST_RECORD=%s: %s", path,
			 errno == EWOULDBLOCK ? "another process is being recorded there"
					      : strerror(errno));
		if (recorder.fd >= 0)
			close(recorder.fd);
		free(recorder.buffer);
		recorder.fd = -1;
		return false;
	}
	recorder.device = device;
	recorder.began = now_ns();
	put("{\"greenboost_trace\":1,\"program\":");
	put_text(program_invocation_short_name);
	put(",\"chunk\":%zu,\"vram\":%" PRIu64 ",\"clock_ns\":%" PRIu64 "}\n", device->chunk,
	    device->limit, recorder.began);
	if (thread_start(&recorder.thread, writer_thread, NULL)) {
		log_warn("not recorded: no thread for it");
		return false;
	}
	/* Nobody joins it: record_close() waits, but not for ever. */
	pthread_detach(recorder.thread);
	atomic_store(&record_on, true);
	return true;
}

void record_close(const struct device *device)
{
	struct timespec until;

	if (!recorded(device))
		return;
	atomic_store(&record_on, false);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += END_SECONDS;
	pthread_mutex_lock(&recorder.lock);
	recorder.closing = true;
	pthread_cond_broadcast(&recorder.changed);
	while (!recorder.finished)
		if (pthread_cond_timedwait(&recorder.changed, &recorder.lock, &until))
			break;
	pthread_mutex_unlock(&recorder.lock);
}

void record_forget(void)
{
	atomic_store(&record_on, false);
}

__attribute__((destructor)) static void at_exit(void)
{
	record_close(recorder.device);
}
