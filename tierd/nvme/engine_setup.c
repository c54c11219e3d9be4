// SPDX-License-Identifier: GPL-2.0-or-later
/* The ring itself, and the tables of files and buffers that the kernel keeps for it. */
#define _GNU_SOURCE
#include "engine_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

/* How long the kernel's thread may take to look at the queue. */
#define SETTLE_MS 1000

static uint32_t segments(uint64_t length)
{
	return (length + SEGMENT_SIZE - 1) >> SEGMENT_SHIFT;
}

static void release(struct gb_ring *ring)
{
	if (ring->eventfd >= 0)
		close(ring->eventfd);
	free(ring->buffers);
	free(ring->requests);
	free(ring->pieces);
	free(ring->done);
	free(ring);
}

static struct gb_ring *allocate(const struct gb_ring_options *options)
{
	struct gb_ring *ring = calloc(1, sizeof(*ring));
	uint32_t depth = options->depth;

	if (!ring)
		return NULL;
	ring->options = *options;
	ring->eventfd = -1;
	ring->buffers = calloc(options->buffers, sizeof(*ring->buffers));
	ring->requests = calloc(depth, sizeof(*ring->requests));
	ring->pieces = calloc(depth, sizeof(*ring->pieces));
	ring->done = calloc(depth, sizeof(*ring->done));
	if (!ring->buffers || !ring->requests || !ring->pieces || !ring->done) {
		release(ring);
		return NULL;
	}
	for (uint32_t i = 0; i < depth; i++) {
		ring->requests[i].next = i + 1 < depth ? i + 1 : NONE;
		ring->pieces[i].next = i + 1 < depth ? i + 1 : NONE;
		ring->pieces[i].request = NONE;
	}
	ring->reads.first = ring->reads.last = NONE;
	ring->writes.first = ring->writes.last = NONE;
	return ring;
}

int gb_ring_new(const struct gb_ring_options *options, struct gb_ring **out)
{
	struct io_uring_params params = {
		.flags = options->setup_flags,
		.sq_thread_idle = options->idle_ms,
	};
	uint32_t entries = options->depth;
	struct gb_ring *ring;
	int err;

	if (!options->depth || !options->piece || !options->window || !options->buffers ||
	    !options->files)
		return -EINVAL;
	ring = allocate(options);
	if (!ring)
		return -ENOMEM;
	ring->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ring->eventfd < 0) {
		err = -errno;
		goto free_ring;
	}
	if (sqpoll(ring))
		entries *= 2; /* see prepare() */
	err = io_uring_queue_init_params(entries, &ring->uring, &params);
	if (err)
		goto free_ring;
	err = io_uring_register_buffers_sparse(&ring->uring, options->buffers);
	if (err)
		goto exit_uring;
	err = io_uring_register_files_sparse(&ring->uring, options->files);
	if (err)
		goto exit_uring;
	err = io_uring_register_eventfd(&ring->uring, ring->eventfd);
	if (err)
		goto exit_uring;
	*out = ring;
	return 0;

exit_uring:
	io_uring_queue_exit(&ring->uring);
free_ring:
	release(ring);
	return err;
}

void gb_ring_free(struct gb_ring *ring)
{
	io_uring_queue_exit(&ring->uring);
	release(ring);
}

int gb_ring_eventfd(const struct gb_ring *ring)
{
	return ring->eventfd;
}

/*
 * The kernel's thread looks an entry of a table up when it takes what names it,
 * which may be after the request was abandoned. Entries must not change before.
 */
static int settle(struct gb_ring *ring)
{
	if (!sqpoll(ring))
		return 0;
	for (int i = 0; io_uring_sq_ready(&ring->uring); i++) {
		int ret = io_uring_submit(&ring->uring); /* wakes it */

		if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY)
			return ret;
		if (i == SETTLE_MS)
			return -EBUSY;
		if (i)
			usleep(1000);
		else
			sched_yield();
	}
	return 0;
}

static int update_buffer(struct gb_ring *ring, uint32_t index, void *base, size_t length)
{
	struct iovec iov = { .iov_base = base, .iov_len = length };
	__u64 tag = 0;
	int ret = io_uring_register_buffers_update_tag(&ring->uring, index, &iov, &tag, 1);

	return ret < 0 ? ret : 0;
}

int gb_ring_clear_buffer(struct gb_ring *ring, uint32_t first, uint64_t length)
{
	int err = settle(ring);

	if (err)
		return err;
	for (uint32_t i = first; i < first + segments(length); i++) {
		if (ring->buffers[i].fixed) {
			int ret = update_buffer(ring, i, NULL, 0);

			err = err ? err : ret;
		}
		ring->buffers[i] = (struct buffer){};
	}
	return err;
}

int gb_ring_set_buffer(struct gb_ring *ring, uint32_t first, void *base, uint64_t length, int fixed)
{
	uint32_t n = segments(length);

	if (first > ring->options.buffers || n > ring->options.buffers - first)
		return -ENOBUFS;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t offset = (uint64_t)i << SEGMENT_SHIFT;
		struct buffer buffer = {
			.base = (char *)base + offset,
			.length = min_u32(SEGMENT_SIZE, length - offset),
			.fixed = fixed,
		};

		if (fixed) {
			int err = update_buffer(ring, first + i, buffer.base, buffer.length);

			if (err) {
				gb_ring_clear_buffer(ring, first, offset);
				return err;
			}
		}
		ring->buffers[first + i] = buffer;
	}
	return 0;
}

int gb_ring_set_file(struct gb_ring *ring, uint32_t index, int fd)
{
	int ret = fd < 0 ? settle(ring) : 0;

	if (!ret)
		ret = io_uring_register_files_update(&ring->uring, index, &fd, 1);
	return ret < 0 ? ret : 0;
}

int gb_fallocate(int fd, int64_t offset, int64_t length)
{
	int ret;

	do
		ret = fallocate(fd, 0, offset, length);
	while (ret && errno == EINTR);
	return ret ? -errno : 0;
}
