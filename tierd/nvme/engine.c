// SPDX-License-Identifier: GPL-2.0-or-later
/* Requests: cutting them into pieces, sending these, and counting them back in. */
#include "engine_internal.h"

#include <errno.h>
#include <sys/eventfd.h>

/* A piece that makes no progress this many times in a row has failed. */
#define MAX_RETRIES 100

/* Makes the eventfd readable, so that gb_ring_reap() is called soon. */
static void poke(struct gb_ring *ring)
{
	eventfd_write(ring->eventfd, 1);
}

/*
 * Puts a piece on the submission queue, which has room: it is as deep as there
 * are pieces, or twice that. The kernel's thread says what it has taken only at
 * the end of a batch, when all of that may have come back and gone out again.
 */
static void prepare(struct gb_ring *ring, uint32_t index)
{
	struct piece *piece = &ring->pieces[index];
	struct request *request = &ring->requests[piece->request];
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
	uint64_t offset = request->buffer_offset + piece->offset;
	uint32_t slot = request->buffer + (offset >> SEGMENT_SHIFT);
	struct buffer *buffer = &ring->buffers[slot];
	char *address = buffer->base + (offset & (SEGMENT_SIZE - 1));
	uint64_t position = request->file_offset + piece->offset;

	if (!piece->length)
		io_uring_prep_fsync(sqe, request->file, IORING_FSYNC_DATASYNC);
	else if (buffer->fixed && request->write)
		io_uring_prep_write_fixed(sqe, request->file, address, piece->length, position,
					  slot);
	else if (buffer->fixed)
		io_uring_prep_read_fixed(sqe, request->file, address, piece->length, position,
					 slot);
	else if (request->write)
		io_uring_prep_write(sqe, request->file, address, piece->length, position);
	else
		io_uring_prep_read(sqe, request->file, address, piece->length, position);
	io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	io_uring_sqe_set_data64(sqe, index);
}

static struct piece *take_piece(struct gb_ring *ring)
{
	struct piece *piece = &ring->pieces[ring->unused_pieces];

	ring->unused_pieces = piece->next;
	return piece;
}

/* Cuts the next piece off a request; a piece lies in one registered buffer. */
static void cut(struct gb_ring *ring, uint32_t number)
{
	struct request *request = &ring->requests[number];
	uint64_t offset = request->buffer_offset + request->sent;
	uint64_t left = request->length - request->sent;
	uint32_t room = min_u32(SEGMENT_SIZE - (offset & (SEGMENT_SIZE - 1)), request->piece);
	struct piece *piece = take_piece(ring);

	*piece = (struct piece){
		.offset = request->sent,
		.length = min_u32(left, room),
		.request = number,
	};
	request->sent += piece->length;
	request->pieces++;
	queue_of(ring, request)->under_way += piece->length;
	prepare(ring, piece - ring->pieces);
}

/*
 * Makes durable what a request wrote. Sent when the last piece is in, not linked
 * to it with IOSQE_IO_LINK: that would save one call into the kernel before an
 * operation of a millisecond, but a piece that comes back short breaks the link,
 * several pieces cannot be linked without going one after the other, and the
 * kernel looks a linked operation's file up only when its turn comes, after the
 * request may have been abandoned.
 */
static void sync(struct gb_ring *ring, uint32_t number)
{
	struct piece *piece = take_piece(ring);

	*piece = (struct piece){ .request = number };
	ring->requests[number].sync = false;
	ring->requests[number].pieces++;
	prepare(ring, piece - ring->pieces);
}

/* Oldest request first, so that a chunk arrives whole as early as it can. */
static void feed_queue(struct gb_ring *ring, struct queue *queue)
{
	while (queue->first != NONE && ring->unused_pieces != NONE &&
	       queue->under_way < ring->options.window) {
		uint32_t number = queue->first;
		struct request *request = &ring->requests[number];

		cut(ring, number);
		if (request->sent == request->length)
			queue->first = request->next;
	}
	if (queue->first == NONE)
		queue->last = NONE;
}

/* Sends what waits. */
static void feed(struct gb_ring *ring)
{
	int ret;

	/* A device may read well and not write: so each has a window of its own. */
	feed_queue(ring, &ring->reads);
	feed_queue(ring, &ring->writes);
	if (!io_uring_sq_ready(&ring->uring))
		return;
	ret = io_uring_submit(&ring->uring);
	if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY)
		ring->broken = ret;
	if (sqpoll(ring) && !ring->broken)
		return; /* its thread takes them in its own time */
	/* The kernel is out of memory for the moment; what it left in the queue goes next time. */
	if (ring->broken || io_uring_sq_ready(&ring->uring))
		poke(ring);
}

static void unlink_waiting(struct gb_ring *ring, uint32_t number)
{
	struct queue *queue = queue_of(ring, &ring->requests[number]);
	uint32_t before = NONE;

	for (uint32_t i = queue->first; i != NONE; before = i, i = ring->requests[i].next) {
		if (i != number)
			continue;
		if (before == NONE)
			queue->first = ring->requests[i].next;
		else
			ring->requests[before].next = ring->requests[i].next;
		if (queue->last == number)
			queue->last = before;
		return;
	}
}

/* The first failure decides a request's result and keeps its other pieces from being sent. */
static void fail(struct gb_ring *ring, uint32_t number, int32_t result)
{
	struct request *request = &ring->requests[number];

	if (!request->result)
		request->result = result;
	if (request->sent < request->length) {
		unlink_waiting(ring, number);
		request->sent = request->length;
	}
}

static void finish_if_done(struct gb_ring *ring, uint32_t number)
{
	struct request *request = &ring->requests[number];

	if (!request->pieces && request->sent == request->length)
		ring->done[ring->done_count++] = number;
}

int gb_ring_start(struct gb_ring *ring, int flags, uint32_t file, uint32_t buffer,
		  uint64_t buffer_offset, uint64_t length, uint64_t file_offset, uint32_t piece)
{
	uint32_t number = ring->unused;
	struct request *request;
	struct queue *queue;

	if (!length)
		return -EINVAL;
	if (number == NONE)
		return -EBUSY;
	request = &ring->requests[number];
	ring->unused = request->next;
	*request = (struct request){
		.length = length,
		.buffer_offset = buffer_offset,
		.file_offset = file_offset,
		.file = file,
		.buffer = buffer,
		.piece = piece ? min_u32(piece, ring->options.piece) : ring->options.piece,
		.next = NONE,
		.write = flags & GB_WRITE,
		.sync = flags & GB_SYNC,
	};
	queue = queue_of(ring, request);
	if (queue->last == NONE)
		queue->first = number;
	else
		ring->requests[queue->last].next = number;
	queue->last = number;
	feed(ring);
	return number;
}

uint64_t gb_ring_arrived(const struct gb_ring *ring, uint32_t number)
{
	const struct request *request = &ring->requests[number];
	uint64_t arrived = request->sent;

	if (request->result)
		return 0;
	/* A piece that came back short begins behind what it brought: see complete(). */
	for (uint32_t i = 0; i < ring->options.depth; i++) {
		const struct piece *piece = &ring->pieces[i];

		if (piece->request == number && piece->offset < arrived)
			arrived = piece->offset;
	}
	return arrived;
}

void gb_ring_cancel(struct gb_ring *ring, uint32_t number)
{
	struct request *request = &ring->requests[number];

	if (request->sent == request->length)
		return; /* all with the kernel, or ended: it decides */
	fail(ring, number, -ECANCELED);
	finish_if_done(ring, number);
	if (!request->pieces)
		poke(ring);
}

/*
 * A piece on the submission queue that the kernel refused for want of memory
 * still names entries of the tables, which may belong to others when it goes:
 * it becomes an operation that does nothing.
 */
static void withdraw(struct gb_ring *ring, uint32_t number)
{
	struct io_uring_sq *sq = &ring->uring.sq;

	if (sqpoll(ring))
		return; /* the queue is its thread's; see settle() */
	for (uint32_t i = *sq->khead; i != sq->sqe_tail; i++) {
		struct io_uring_sqe *sqe = &sq->sqes[i & sq->ring_mask];
		uint32_t index = sqe->user_data;

		if (ring->pieces[index].request != number)
			continue;
		io_uring_prep_nop(sqe);
		io_uring_sqe_set_data64(sqe, index);
	}
}

void gb_ring_abandon(struct gb_ring *ring, uint32_t number)
{
	struct request *request = &ring->requests[number];

	if (!request->pieces && request->sent == request->length)
		return; /* ended: gb_ring_reap() is about to say so */
	fail(ring, number, -ETIMEDOUT);
	withdraw(ring, number);
	/* However long the kernel keeps it, others must not wait for that. */
	request->abandoned = true;
	for (uint32_t i = 0; i < ring->options.depth; i++)
		if (ring->pieces[i].request == number)
			queue_of(ring, request)->under_way -= ring->pieces[i].length;
	finish_if_done(ring, number);
	if (!request->pieces)
		poke(ring);
}

static void complete(struct gb_ring *ring, uint32_t index, int32_t res)
{
	struct piece *piece = &ring->pieces[index];
	uint32_t number = piece->request;
	struct request *request = &ring->requests[number];

	if (!request->result) {
		if ((res == -EINTR || res == -EAGAIN) && ++piece->retries < MAX_RETRIES) {
			prepare(ring, index);
			return;
		}
		if (res > 0 && (uint32_t)res < piece->length) {
			piece->offset += res;
			piece->length -= res;
			piece->retries = 0;
			queue_of(ring, request)->under_way -= res;
			prepare(ring, index);
			return;
		}
	}
	/* Nothing moved means that the file ends here: it was made shorter, or its device is gone.
	 */
	if (res < 0 || (!res && piece->length))
		fail(ring, number, res ? res : -EIO);
	if (!request->abandoned)
		queue_of(ring, request)->under_way -= piece->length;
	piece->request = NONE;
	piece->next = ring->unused_pieces;
	ring->unused_pieces = index;
	request->pieces--;
	if (request->sync && !request->result && !request->pieces &&
	    request->sent == request->length)
		sync(ring, number);
	finish_if_done(ring, number);
}

/* Returns whether there were completions. */
static bool drain(struct gb_ring *ring)
{
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;
	int ret;

	/*
	 * Under DEFER_TASKRUN completions are posted only while their thread is in
	 * here, and under IOPOLL this is what asks the device.
	 */
	ret = sqpoll(ring) ? 0 : io_uring_get_events(&ring->uring);
	if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY)
		ring->broken = ret;
	io_uring_for_each_cqe(&ring->uring, head, cqe)
	{
		complete(ring, io_uring_cqe_get_data64(cqe), cqe->res);
		n++;
	}
	io_uring_cq_advance(&ring->uring, n);
	return n > 0;
}

int gb_ring_reap(struct gb_ring *ring, uint32_t *requests, int32_t *results)
{
	eventfd_t count;
	uint32_t n;

	/*
	 * Until a round finds none: the kernel handles a bounded number of
	 * completions a round and does not signal the rest again. Under
	 * DEFER_TASKRUN it signals a completion twice, when it is there to be
	 * handled and when drain() had it posted. Reading the eventfd once more
	 * before a round that finds nothing spares the pump every second wake-up.
	 */
	for (;;) {
		eventfd_read(ring->eventfd, &count);
		if (!drain(ring) || ring->broken)
			break;
		feed(ring);
	}
	feed(ring);
	if (ring->broken)
		return ring->broken;
	n = ring->done_count;
	ring->done_count = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t number = ring->done[i];

		requests[i] = number;
		results[i] = ring->requests[number].result;
		ring->requests[number].next = ring->unused;
		ring->unused = number;
	}
	return n;
}
