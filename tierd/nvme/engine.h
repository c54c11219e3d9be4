/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The part of the io_uring ring that runs once per piece or per completion.
 *
 * A request is one contiguous transfer between a registered buffer and a
 * registered file, usually a chunk. It is cut into pieces of the size that suits
 * the device. At most `depth` pieces are with the kernel at a time, and about
 * `window` bytes of reads and as many of writes, oldest request first: what the
 * kernel has it works on in turn, so given everything it would bring everything
 * at the end. Python starts a request with one call and hears of it once, when all
 * its pieces are done, so the interpreter's time goes per request and not per byte.
 *
 * Not thread safe: every call comes from the thread that made the ring, which
 * IORING_SETUP_SINGLE_ISSUER demands anyway. Functions return 0 or a count, or
 * -errno. cffi reads the declarations between the two marks as they stand.
 */
#ifndef GREENBOOST_NVME_ENGINE_H
#define GREENBOOST_NVME_ENGINE_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
struct gb_ring;

struct gb_ring_options {
	uint32_t depth; /* pieces with the kernel at most; also the number of requests */
	uint32_t piece; /* bytes of a piece at most, a multiple of the block size */
	uint64_t window; /* bytes of reads, or of writes, with the kernel: then no more is sent */
	uint32_t setup_flags; /* IORING_SETUP_* */
	uint32_t buffers; /* entries of the registered buffer table */
	uint32_t files; /* entries of the registered file table */
	uint32_t idle_ms; /* with IORING_SETUP_SQPOLL: its thread sleeps after so long without work
			   */
};

int gb_ring_new(const struct gb_ring_options *options, struct gb_ring **ring);

/* Everything started must have been reaped: the kernel may still write otherwise. */
void gb_ring_free(struct gb_ring *ring);

/*
 * Readable whenever gb_ring_reap() has something to do. Not so with
 * IORING_SETUP_IOPOLL: there it has to be called again and again while requests
 * are under way, because it is what looks for completions.
 */
int gb_ring_eventfd(const struct gb_ring *ring);

/*
 * Entries first .. first + n - 1, one per GiB begun, become the memory at base.
 * With fixed == 0 the kernel is told nothing: it then pins the pages anew for
 * each transfer.
 */
int gb_ring_set_buffer(struct gb_ring *ring, uint32_t first, void *base, uint64_t length,
		       int fixed);
int gb_ring_clear_buffer(struct gb_ring *ring, uint32_t first, uint64_t length);

/* fd -1 empties the entry. The ring holds a reference to the file, not the fd. */
int gb_ring_set_file(struct gb_ring *ring, uint32_t index, int fd);

#define GB_WRITE 1 /* to the file; otherwise from it */
#define GB_SYNC 2 /* with GB_WRITE: what was written is durable when the request ends */

/*
 * Starts a request; its number, or -EBUSY when all are taken. Its pieces have
 * `piece` bytes at most if that is less than the ring's and not 0.
 */
int gb_ring_start(struct gb_ring *ring, int flags, uint32_t file, uint32_t buffer,
		  uint64_t buffer_offset, uint64_t length, uint64_t file_offset, uint32_t piece);

/*
 * How many bytes from its start a read that gb_ring_reap() has not reported has
 * brought, without a gap. 0 once it has failed. Looks through all pieces.
 */
uint64_t gb_ring_arrived(const struct gb_ring *ring, uint32_t request);

/*
 * Sends no further piece of the request. What the kernel has already cannot be
 * called back from a device, so the request still ends in gb_ring_reap(), with
 * -ECANCELED, once no piece touches its buffer any more.
 */
void gb_ring_cancel(struct gb_ring *ring, uint32_t request);

/*
 * Ends the request now as far as the caller is concerned: no further piece of
 * it is sent, short transfers are not continued, and its file and buffer may be
 * taken out of their tables at once. What the kernel has it keeps, with
 * references of its own to the file and to the pages of a fixed buffer. The
 * request's number stays taken until gb_ring_reap() reports it.
 */
void gb_ring_abandon(struct gb_ring *ring, uint32_t request);

/*
 * Takes completions, continues short transfers, sends waiting pieces. Fills in
 * the requests that ended and their results, 0 or -errno, and returns how many;
 * both arrays have `depth` elements. A negative return means that the kernel
 * refuses the ring itself.
 */
int gb_ring_reap(struct gb_ring *ring, uint32_t *requests, int32_t *results);

/* Python's os has only posix_fallocate, which may write zeros for hours instead. */
int gb_fallocate(int fd, int64_t offset, int64_t length);
/* cffi: end */

#endif
