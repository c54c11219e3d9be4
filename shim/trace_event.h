/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What trace.c notes and trace_write.c writes down. */
#ifndef GREENBOOST_TRACE_EVENT_H
#define GREENBOOST_TRACE_EVENT_H

#include "spool.h"
#include "trace.h"

/* The tracks of a device, and how many of them are streams'. */
#define TRACKS_EACH 1000
#define STREAMS_MOST (TRACKS_EACH - 4)

enum what { HOST, STALL, CHUNK_COPY, TRANSFER, MOMENT, SLOTS, LAUNCH };

struct range {
	uint32_t first, last;
};

struct event {
	struct spool_entry entry; /* first: the spool frees it */
	enum what what;
	struct traced *traced;
	uint64_t began, ended; /* on the host */
	pid_t thread;
	const char *name, *text;
	uint32_t chunk;
	bool up; /* up, or fetched */
	bool ahead, failed, captured;
	bool more; /* chunks than the ranges say */
	uint64_t bytes, address;
	struct span_of_time time;
	uint32_t vram, ram; /* slots */
	/* Of launches and stalls: */
	struct function *function;
	uint64_t stream;
	uint32_t count, absent, arriving;
	uint32_t range_count;
	struct range ranges[];
};

/* One device of this process; the writer's but for what is said otherwise. */
struct traced {
	struct device *device;
	size_t chunk; /* bytes */
	uint32_t vram, ram; /* slots used, as said last; guarded by the device's lock */
	bool slots_said;

	CUstream stream; /* runs nothing but anchors */
	CUevent anchor; /* recorded when the host's clock said: */
	double anchor_ns;
	uint64_t anchored;

	bool tracks_named;
	double last_end[TRACKS_EACH]; /* of each track: where the next one may begin */
	uint64_t streams[STREAMS_MOST]; /* by track */
	uint32_t stream_count;
};

extern struct spool trace_spool;

/* The first line, before the spool is started. */
void trace_write_process(void);

#endif
