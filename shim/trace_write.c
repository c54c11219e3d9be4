// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What was noted, written as Chrome's trace events: which track each is on, and when the
 * device did it by the host's clock. All of it is the spool's thread's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "function.h"
#include "residency.h"
#include "trace_event.h"

#define NAME_MOST 240
#define LINE_MOST 4096

/* A thread's number is smaller on any Linux. */
#define TRACK_FIRST 10000000

/* Bytes a second are told for pieces of this length. */
#define RATE_NS 10000000u

/* The device's clock is compared with the host's again after so long. */
#define CLOCK_NS 1000000000u
#define CLOCK_TRIES 3

enum track { TRACK_UP, TRACK_DOWN, TRACK_STREAMS };
enum direction { VRAM_IN, VRAM_OUT, NVME_IN, NVME_OUT, DIRECTIONS };

static const char *const direction_names[DIRECTIONS] = {
	[VRAM_IN] = "RAM to VRAM",
	[VRAM_OUT] = "VRAM to RAM",
	[NVME_IN] = "NVMe to RAM",
	[NVME_OUT] = "RAM to NVMe",
};

/* Bytes of one direction in the current piece of time. */
struct rate {
	uint64_t piece, bytes;
};

static struct {
	pid_t *named; /* threads whose names are in the file */
	size_t named_count, named_room;
	struct rate rates[DIRECTIONS];
	CUcontext context; /* its current one */
} writer;

#define put(...) spool_put(&trace_spool, __VA_ARGS__)

/* ---- tracks ---- */

/* Whole nanoseconds, so that one ends where the next begins also when both are written down. */
static uint64_t whole(double ns)
{
	return (uint64_t)(ns + 0.5);
}

/* As microseconds, which is what the format has. */
#define MICROSECONDS "%" PRIu64 ".%03u"
#define microseconds(ns) (ns) / 1000, (unsigned int)((ns) % 1000)

static void put_name_of_track(uint64_t track, const char *name, uint64_t number)
{
	spool_line(&trace_spool);
	put("{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%" PRIu64
	    ",\"args\":{\"name\":",
	    getpid(), track);
	if (number) {
		char text[64];

		snprintf(text, sizeof(text), "%.32s %" PRIu64, name, number);
		spool_put_text(&trace_spool, text);
	} else {
		spool_put_text(&trace_spool, name);
	}
	put("}},\n{\"name\":\"thread_sort_index\",\"ph\":\"M\",\"pid\":%d,\"tid\":%" PRIu64
	    ",\"args\":{\"sort_index\":%" PRIu64 "}},\n",
	    getpid(), track, track);
	spool_line(&trace_spool);
}

/* Before a thread's first event: its name as the kernel has it. */
static void name_thread(pid_t thread)
{
	char path[64], name[32] = "";
	ssize_t n = -1;
	int fd;

	for (size_t i = writer.named_count; i > 0; i--)
		if (writer.named[i - 1] == thread)
			return;
	if (writer.named_count == writer.named_room) {
		size_t room = writer.named_room ? 2 * writer.named_room : 64;
		pid_t *grown = realloc(writer.named, room * sizeof(*grown));

		if (!grown)
			return; /* then it has only a number */
		writer.named = grown;
		writer.named_room = room;
	}
	writer.named[writer.named_count++] = thread;
	snprintf(path, sizeof(path), "/proc/self/task/%d/comm", thread);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, name, sizeof(name) - 1);
		close(fd);
	}
	if (n <= 0)
		return; /* it has ended */
	name[n - 1] = 0; /* a line's end */
	put_name_of_track((uint64_t)thread, name, 0);
}

static uint64_t track_of(const struct traced *traced, uint32_t track)
{
	return TRACK_FIRST + (uint64_t)traced->device->ordinal * TRACKS_EACH + track;
}

static uint32_t stream_track(struct traced *traced, uint64_t stream)
{
	uint32_t i = 0;

	while (i < traced->stream_count && traced->streams[i] != stream)
		i++;
	if (i < traced->stream_count)
		return TRACK_STREAMS + i;
	if (i == STREAMS_MOST)
		return TRACK_STREAMS + i - 1; /* the rest share one */
	traced->streams[traced->stream_count++] = stream;
	put_name_of_track(track_of(traced, TRACK_STREAMS + i), "GPU stream", i + 1);
	return TRACK_STREAMS + i;
}

/* ---- times ---- */

static void make_current(struct traced *traced)
{
	/* Captures of other threads must not forbid what this one does. */
	int relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;

	if (writer.context == traced->device->context)
		return;
	if (!writer.context)
		driver.cuThreadExchangeStreamCaptureMode(&relaxed);
	driver.cuCtxSetCurrent(traced->device->context);
	writer.context = traced->device->context;
}

/* Have one place in a stream whose time on the host is known: the shortest of some tries. */
static bool take_anchor(struct traced *traced)
{
	uint64_t shortest = UINT64_MAX;

	if (traced->anchor && spool_now() - traced->anchored < CLOCK_NS)
		return true;
	if (!traced->stream && driver.cuStreamCreate(&traced->stream, CU_STREAM_NON_BLOCKING)) {
		traced->stream = NULL;
		return false;
	}
	for (int i = 0; i < CLOCK_TRIES; i++) {
		CUevent event = NULL;
		uint64_t before, after;

		/* Not one of those that sleep: how long it takes to wake up is not known. */
		if (driver.cuEventCreate(&event, 0))
			continue;
		before = spool_now();
		if (driver.cuEventRecord(event, traced->stream) ||
		    driver.cuEventSynchronize(event)) {
			driver.cuEventDestroy_v2(event);
			continue;
		}
		after = spool_now();
		if (after - before < shortest) {
			shortest = after - before;
			if (traced->anchor)
				driver.cuEventDestroy_v2(traced->anchor);
			traced->anchor = event;
			traced->anchor_ns = (double)before + (double)shortest / 2;
			traced->anchored = after;
		} else {
			driver.cuEventDestroy_v2(event);
		}
	}
	return traced->anchor != NULL;
}

/*
 * When the device did what lies between the marks, by the host's clock. What is in one
 * stream is done one after the other, also where two looks at the clocks differ a little.
 * False: it is not known. Gives the events back.
 */
static bool device_time(struct event *e, uint32_t track, double *began, double *ended)
{
	struct traced *traced = e->traced;
	float from = 0, length = 0;
	bool known = false;

	make_current(traced);
	if (e->time.before && e->time.after && !driver.cuEventSynchronize(e->time.after) &&
	    take_anchor(traced) &&
	    !driver.cuEventElapsedTime(&from, traced->anchor, e->time.before) &&
	    !driver.cuEventElapsedTime(&length, e->time.before, e->time.after))
		known = true;
	timing_put(&traced->device->mover.timing, e->time.before);
	timing_put(&traced->device->mover.timing, e->time.after);
	if (!known)
		return false;
	*began = traced->anchor_ns + (double)from * 1e6;
	*ended = *began + (double)length * 1e6;
	if (*began < traced->last_end[track])
		*began = traced->last_end[track];
	if (*ended < *began)
		*ended = *began;
	traced->last_end[track] = *ended;
	return true;
}

/* ---- events ---- */

/* The beginning of an event, up to where its own fields follow. A name is cut where it is too long.
 */
static void put_head(const char *name, const char *category, char phase, double ns, uint64_t track)
{
	char cut[NAME_MOST + 1];

	snprintf(cut, sizeof(cut), "%s", name);
	put("{\"name\":");
	spool_put_text(&trace_spool, cut);
	put(",\"cat\":\"%s\",\"ph\":\"%c\",\"ts\":" MICROSECONDS ",\"pid\":%d,\"tid\":%" PRIu64,
	    category, phase, microseconds(whole(ns)), getpid(), track);
}

static void put_slice(const char *name, const char *category, double began, double ended,
		      uint64_t track)
{
	put_head(name, category, 'X', began, track);
	put(",\"dur\":" MICROSECONDS ",\"args\":{", microseconds(whole(ended) - whole(began)));
}

static void put_end(void)
{
	put("}},\n");
	spool_line(&trace_spool);
}

static void put_ranges(const struct event *e)
{
	put("\"chunks\":\"");
	for (uint32_t i = 0; i < e->range_count; i++) {
		put("%s%" PRIu32, i ? "," : "", e->ranges[i].first);
		if (e->ranges[i].last > e->ranges[i].first)
			put("-%" PRIu32, e->ranges[i].last);
	}
	put("%s\",\"chunk_count\":%" PRIu32, e->more ? ",..." : "", e->count);
}

static void put_rate(enum direction direction, uint64_t piece, uint64_t bytes)
{
	put_head(direction_names[direction], "rate", 'C', (double)piece * RATE_NS, 0);
	put(",\"args\":{\"bytes a second\":%.0f", (double)bytes * (1e9 / RATE_NS));
	put_end();
}

/* A piece's rate is told when the next one begins. */
static void count_rate(enum direction direction, double ns, uint64_t bytes)
{
	struct rate *rate = &writer.rates[direction];
	uint64_t piece = (uint64_t)ns / RATE_NS;

	if (piece > rate->piece) {
		if (rate->bytes)
			put_rate(direction, rate->piece, rate->bytes);
		if (rate->bytes && piece > rate->piece + 1)
			put_rate(direction, rate->piece + 1, 0);
		*rate = (struct rate){ .piece = piece };
	}
	rate->bytes += bytes;
}

/* Nothing has happened for a while. */
static void write_rates(void)
{
	for (int i = 0; i < DIRECTIONS; i++) {
		struct rate *rate = &writer.rates[i];

		if (!rate->bytes)
			continue;
		put_rate(i, rate->piece, rate->bytes);
		put_rate(i, rate->piece + 1, 0);
		rate->bytes = 0;
	}
}

static void write_host(const struct event *e)
{
	name_thread(e->thread);
	put_slice(e->name, "host", (double)e->began, (double)e->ended, (uint64_t)e->thread);
	if (e->chunk != TRACE_NO_CHUNK)
		put("\"chunk\":%" PRIu32 "%s", e->chunk, e->text ? "," : "");
	if (e->text)
		put("\"result\":\"%s\"", e->text);
	put_end();
}

static void write_stall(const struct event *e)
{
	name_thread(e->thread);
	put_slice("wait for chunks", "stall", (double)e->began, (double)e->ended,
		  (uint64_t)e->thread);
	put_ranges(e);
	put(",\"bytes\":%" PRIu64, (uint64_t)e->count * e->traced->chunk);
	put_end();
}

static void write_copy(struct event *e)
{
	uint32_t track = e->up ? TRACK_UP : TRACK_DOWN;
	double began = (double)e->began, ended = began;
	bool known = device_time(e, track, &began, &ended);
	char name[32];

	if (!e->traced->tracks_named) {
		put_name_of_track(track_of(e->traced, TRACK_UP), "copies RAM to VRAM", 0);
		put_name_of_track(track_of(e->traced, TRACK_DOWN), "copies VRAM to RAM", 0);
		e->traced->tracks_named = true;
	}
	snprintf(name, sizeof(name), "chunk %" PRIu32, e->chunk);
	put_slice(name, e->up ? "to_vram" : "from_vram", began, ended, track_of(e->traced, track));
	put("\"chunk\":%" PRIu32 ",\"bytes\":%zu,\"ahead\":%s%s", e->chunk, e->traced->chunk,
	    e->ahead ? "true" : "false", known ? "" : ",\"time\":\"unknown\"");
	put_end();
	count_rate(e->up ? VRAM_IN : VRAM_OUT, ended, e->traced->chunk);
}

/* Many are under way at once: each is a track for as long as it takes. */
static void write_transfer(const struct event *e)
{
	const char *category = e->up ? "fetch" : "spill";
	static uint64_t number;
	char name[32];

	snprintf(name, sizeof(name), "%s chunk %" PRIu32, category, e->chunk);
	number++;
	put_head(name, category, 'b', (double)e->began, (uint64_t)getpid());
	put(",\"id2\":{\"local\":\"%" PRIu64 "\"},\"args\":{\"chunk\":%" PRIu32
	    ",\"bytes\":%zu,\"failed\":%s",
	    number, e->chunk, e->traced->chunk, e->failed ? "true" : "false");
	put_end();
	put_head(name, category, 'e', (double)e->ended, (uint64_t)getpid());
	put(",\"id2\":{\"local\":\"%" PRIu64 "\"},\"args\":{", number);
	put_end();
	if (!e->failed)
		count_rate(e->up ? NVME_IN : NVME_OUT, (double)e->ended, e->traced->chunk);
}

static void write_moment(const struct event *e)
{
	name_thread(e->thread);
	put_head(e->name, "moment", 'i', (double)e->began, (uint64_t)e->thread);
	put(",\"s\":\"t\",\"args\":{\"gpu\":%d", e->traced->device->ordinal);
	if (e->bytes)
		put(",\"bytes\":%" PRIu64, e->bytes);
	if (e->address)
		put(",\"address\":\"0x%" PRIx64 "\"", e->address);
	if (e->text)
		put(",\"how\":\"%s\"", e->text);
	put_end();
}

static void write_slots(const struct event *e)
{
	char name[32];

	snprintf(name, sizeof(name), "slots used, GPU %d", e->traced->device->ordinal);
	put_head(name, "slots", 'C', (double)e->began, 0);
	put(",\"args\":{\"VRAM\":%" PRIu32 ",\"RAM\":%" PRIu32, e->vram, e->ram);
	put_end();
}

/* The call on the thread's track and, unless a graph took it, the work on its stream's. */
static void write_launch(struct event *e)
{
	const char *name = e->function ? function_shown(e->function) : "copy";
	const char *category = e->function ? "launch" : "copy";
	double began, ended;
	uint32_t track;

	name_thread(e->thread);
	put_slice(name, category, (double)e->began, (double)e->ended, (uint64_t)e->thread);
	put_ranges(e);
	put(",\"named_bytes\":%" PRIu64 ",\"waited_bytes\":%" PRIu64 ",\"arriving_bytes\":%" PRIu64
	    ",\"stream\":\"0x%" PRIx64 "\"%s%s",
	    (uint64_t)e->count * e->traced->chunk, (uint64_t)e->absent * e->traced->chunk,
	    (uint64_t)e->arriving * e->traced->chunk, e->stream,
	    e->captured ? ",\"captured\":true" : "", e->failed ? ",\"failed\":true" : "");
	put_end();
	if (!e->time.before && !e->time.after)
		return;
	track = stream_track(e->traced, e->stream);
	if (!device_time(e, track, &began, &ended))
		return;
	put_slice(name, e->function ? "kernel" : "copy_on_gpu", began, ended,
		  track_of(e->traced, track));
	put_ranges(e);
	put_end();
}

static void write_event(struct spool_entry *entry)
{
	struct event *e = (struct event *)entry;

	switch (e->what) {
	case HOST:
		write_host(e);
		break;
	case STALL:
		write_stall(e);
		break;
	case CHUNK_COPY:
		write_copy(e);
		break;
	case TRANSFER:
		write_transfer(e);
		break;
	case MOMENT:
		write_moment(e);
		break;
	case SLOTS:
		write_slots(e);
		break;
	case LAUNCH:
		write_launch(e);
		break;
	}
}

void trace_write_process(void)
{
	put("{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":",
	    getpid(), getpid());
	spool_put_text(&trace_spool, program_invocation_short_name);
	put("}},\n");
}

struct spool trace_spool = SPOOL(.what = "the trace", .line_most = LINE_MOST, .write = write_event,
				 .idle = write_rates);
