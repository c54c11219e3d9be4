/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The ring's inside, shared by engine.c, which transfers, and engine_setup.c, which prepares. */
#ifndef GREENBOOST_NVME_ENGINE_INTERNAL_H
#define GREENBOOST_NVME_ENGINE_INTERNAL_H

#include "engine.h"

#include <liburing.h>
#include <stdbool.h>

/* The kernel takes at most 1 GiB in one registered buffer. */
#define SEGMENT_SHIFT 30
#define SEGMENT_SIZE (UINT64_C(1) << SEGMENT_SHIFT)

/* No request, no piece: the end of a list. */
#define NONE UINT32_MAX

struct buffer {
	char *base;
	uint64_t length;
	bool fixed;
};

struct request {
	uint64_t length;
	uint64_t sent; /* bytes cut into pieces so far */
	uint64_t buffer_offset;
	uint64_t file_offset;
	uint32_t file;
	uint32_t buffer; /* first entry of its buffer */
	uint32_t piece; /* bytes of one at most */
	uint32_t pieces; /* with the kernel now */
	uint32_t next; /* in a queue or in `unused` */
	int32_t result;
	bool write;
	bool sync; /* an fdatasync is still to be sent */
	bool abandoned;
};

struct piece {
	uint64_t offset; /* from the start of its request */
	uint32_t length; /* 0 for an fdatasync */
	uint32_t request; /* NONE: it is unused */
	uint32_t next; /* in `unused_pieces` */
	uint32_t retries;
};

/* Requests in one direction with bytes not sent yet, in order of arrival. */
struct queue {
	uint32_t first, last;
	uint64_t under_way; /* bytes with the kernel that somebody waits for */
};

struct gb_ring {
	struct io_uring uring;
	struct gb_ring_options options;
	int eventfd;
	int broken; /* -errno of io_uring_enter, once it refused the ring */
	struct buffer *buffers;
	struct request *requests;
	struct piece *pieces;
	uint32_t *done; /* requests that ended and were not reported yet */
	uint32_t done_count;
	uint32_t unused, unused_pieces; /* heads of free lists */
	struct queue reads, writes;
};

static inline bool sqpoll(const struct gb_ring *ring)
{
	return ring->options.setup_flags & IORING_SETUP_SQPOLL;
}

static inline struct queue *queue_of(struct gb_ring *ring, const struct request *request)
{
	return request->write ? &ring->writes : &ring->reads;
}

static inline uint32_t min_u32(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

#endif
