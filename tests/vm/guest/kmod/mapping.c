// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What can be mapped and how, and how long memory lives: every order in which those who have it let
 * go.
 */
#define _GNU_SOURCE
#include <liburing.h>
#include <setjmp.h>
#include <signal.h>

#include "device.h"

#define SIZE (5 * MIB)

static void offsets_and_lengths_are_honoured(void)
{
	static const struct {
		off_t offset;
		size_t size;
	} parts[] = {
		{ 0, PAGE },
		{ PAGE, PAGE },
		{ 2 * MIB - PAGE, 2 * PAGE },
		{ MIB, 3 * MIB },
		{ SIZE - PAGE, PAGE },
		{ 4 * MIB - PAGE, MIB },
		{ 4 * MIB + 3 * PAGE, 7 * PAGE },
		{ PAGE, SIZE - 2 * PAGE },
	};
	int buffer = buffer_alloc(device_open(), SIZE);
	char *all = buffer_map(buffer, SIZE, 0);

	pattern_write(all, SIZE, 1);
	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
		char *part = buffer_map(buffer, parts[i].size, parts[i].offset);

		CHECK(!memcmp(part, all + parts[i].offset, parts[i].size));
		memset(part, i + 1, parts[i].size);
		CHECK(!memcmp(part, all + parts[i].offset, parts[i].size));
		CHECK(munmap(part, parts[i].size) == 0);
	}
	CHECK(close(buffer) == 0);
}

static void outside_of_the_buffer_nothing_is_mapped(void)
{
	static const struct {
		off_t offset;
		size_t size;
	} parts[] = {
		{ 0, SIZE + PAGE }, { PAGE, SIZE },	    { SIZE, PAGE },
		{ 1L << 40, PAGE }, { -(off_t)PAGE, PAGE },
	};
	int buffer = buffer_alloc(device_open(), SIZE);

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
		CHECK(mmap(NULL, parts[i].size, PROT_READ, MAP_SHARED, buffer, parts[i].offset) ==
		      MAP_FAILED);
		CHECK(errno == EINVAL || errno == EOVERFLOW);
	}
	REFUSED(EINVAL, mmap(NULL, PAGE, PROT_READ, MAP_SHARED, buffer, 1));
}

static void private_mappings_are_refused(void)
{
	int buffer = buffer_alloc(device_open(), SIZE);

	REFUSED(EINVAL, mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, buffer, 0));
	REFUSED(EINVAL, mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, buffer, 0));
}

static sigjmp_buf fault;

static void on_fault(int number)
{
	siglongjmp(fault, number);
}

/* The signal that reading or writing there ends with; 0 if it works. */
static int touch(volatile char *address, bool write)
{
	int number = sigsetjmp(fault, 1);

	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	if (!number) {
		char value = *address;

		if (write)
			*address = value;
	}
	return number;
}

static void protection_is_kept(void)
{
	int buffer = buffer_alloc(device_open(), SIZE);
	char *memory = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, buffer, 0);

	CHECK(memory != MAP_FAILED);
	CHECK(touch(memory + 3 * MIB, false) == 0);
	CHECK(touch(memory + 3 * MIB, true) == SIGSEGV);
	CHECK(mprotect(memory + 3 * MIB, PAGE, PROT_READ | PROT_WRITE) == 0);
	CHECK(touch(memory + 3 * MIB, true) == 0);
	CHECK(touch(memory + 3 * MIB + PAGE, true) == SIGSEGV);
}

static void unmapping_a_part_leaves_the_rest(void)
{
	int buffer = buffer_alloc(device_open(), SIZE);
	char *memory = buffer_map(buffer, SIZE, 0);

	CHECK(close(buffer) == 0);
	pattern_write(memory, SIZE, 3);
	CHECK(munmap(memory + MIB, MIB) == 0);
	CHECK(touch(memory + MIB, false) == SIGSEGV);
	CHECK(pattern_holds(memory, MIB, 3));
	CHECK(touch(memory + 2 * MIB, true) == 0);
}

static void what_is_thrown_out_of_a_mapping_comes_back(void)
{
	int buffer = buffer_alloc(device_open(), SIZE);
	char *memory = buffer_map(buffer, SIZE, 0);

	pattern_write(memory, SIZE, 4);
	CHECK(madvise(memory + PAGE, SIZE - PAGE, MADV_DONTNEED) == 0);
	CHECK(pattern_holds(memory, SIZE, 4));
}

static void a_mapping_can_move_but_not_grow(void)
{
	int buffer = buffer_alloc(device_open(), SIZE);
	char *memory = buffer_map(buffer, 4 * MIB, 0);
	char *place = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	pattern_write(memory, 4 * MIB, 5);
	REFUSED(EFAULT, mremap(memory, 4 * MIB, SIZE, MREMAP_MAYMOVE));
	CHECK(mremap(memory, 4 * MIB, 4 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
	CHECK(pattern_holds(place, 4 * MIB, 5));
}

static void a_child_shares_the_memory(void)
{
	int buffer = buffer_alloc(device_open(), SIZE);
	char *memory = buffer_map(buffer, SIZE, 0);
	int gone[2], status;
	char byte = 0;
	pid_t child;

	pattern_write(memory, SIZE, 6);
	CHECK(close(buffer) == 0);
	child = fork();
	if (child == 0) {
		CHECK(pattern_holds(memory, SIZE, 6));
		pattern_write(memory, SIZE, 7);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(status == 0);
	CHECK(pattern_holds(memory, SIZE, 7));
	/* And what the parent gives up, the child has still. */
	CHECK(pipe(gone) == 0);
	child = fork();
	if (child == 0) {
		CHECK(read(gone[0], &byte, 1) == 1);
		CHECK(pattern_holds(memory, SIZE, 7));
		_exit(0);
	}
	CHECK(munmap(memory, SIZE) == 0);
	CHECK(read_number(ATTRIBUTES "used_bytes") == SIZE);
	CHECK(write(gone[1], &byte, 1) == 1);
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(status == 0);
	wait_until_unused();
}

/* What keeps a buffer, or pages of it, alive. */
enum holder { DEVICE_FILE, BUFFER, MAPPING, PIN, HOLDERS };

struct held {
	bool by[HOLDERS];
	int device;
	int buffer;
	char *memory;
	struct io_uring ring;
	int pipe[2]; /* instead of the ring, or -1 */
	uint64_t seed;
};

/* Every 20 KiB a page: as many as a pipe holds. */
#define PIPE_PAGES 256
#define PIPE_STRIDE (SIZE / PIPE_PAGES)

/* Kernels before 6.5 register no memory of files but tmpfs's; pipes take pages from everywhere. */
static void pin_in_pipe(struct held *held)
{
	struct iovec pages[PIPE_PAGES];

	for (int i = 0; i < PIPE_PAGES; i++)
		pages[i] = (struct iovec){ held->memory + i * PIPE_STRIDE, PAGE };
	CHECK(pipe(held->pipe) == 0);
	CHECK(fcntl(held->pipe[1], F_SETPIPE_SZ, PIPE_PAGES * PAGE) == PIPE_PAGES * PAGE);
	CHECK(vmsplice(held->pipe[1], pages, PIPE_PAGES, SPLICE_F_NONBLOCK) == PIPE_PAGES * PAGE);
}

static void pin(struct held *held)
{
	int ret;

	held->pipe[0] = -1;
	CHECK(io_uring_queue_init(4, &held->ring, 0) == 0);
	ret = io_uring_register_buffers(&held->ring, &(struct iovec){ held->memory, SIZE }, 1);
	if (ret == -EOPNOTSUPP && !strncmp(getenv("GREENBOOST_VM"), "6.1.", 4)) {
		io_uring_queue_exit(&held->ring);
		pin_in_pipe(held);
	} else {
		CHECK(ret == 0);
	}
}

static void hold(struct held *held, uint64_t seed)
{
	memset(held, 0, sizeof(*held));
	held->seed = seed;
	held->device = device_open();
	held->buffer = buffer_alloc(held->device, SIZE);
	held->memory = buffer_map(held->buffer, SIZE, 0);
	pattern_write(held->memory, SIZE, seed);
	pin(held);
	for (int i = 0; i < HOLDERS; i++)
		held->by[i] = true;
}

static void let_go(struct held *held, enum holder holder)
{
	held->by[holder] = false;
	switch (holder) {
	case DEVICE_FILE:
		CHECK(close(held->device) == 0);
		break;
	case BUFFER:
		CHECK(close(held->buffer) == 0);
		break;
	case MAPPING:
		CHECK(munmap(held->memory, SIZE) == 0);
		break;
	case PIN:
		if (held->pipe[0] >= 0) {
			CHECK(close(held->pipe[0]) == 0);
			CHECK(close(held->pipe[1]) == 0);
			break;
		}
		CHECK(io_uring_unregister_buffers(&held->ring) == 0);
		io_uring_queue_exit(&held->ring);
		break;
	default:
		CHECK(false);
	}
}

static bool pipe_holds(struct held *held)
{
	char page[PAGE];
	int copy[2];

	CHECK(pipe(copy) == 0);
	CHECK(fcntl(copy[1], F_SETPIPE_SZ, PIPE_PAGES * PAGE) == PIPE_PAGES * PAGE);
	CHECK(tee(held->pipe[0], copy[1], PIPE_PAGES * PAGE, 0) == PIPE_PAGES * PAGE);
	for (int i = 0; i < PIPE_PAGES; i++) {
		CHECK(read(copy[0], page, PAGE) == PAGE);
		if (!pattern_holds_at(page, i * PIPE_STRIDE, held->seed))
			return false;
	}
	CHECK(close(copy[0]) == 0);
	CHECK(close(copy[1]) == 0);
	return true;
}

/* Through the ring's pages, even if nothing is mapped at their address any more. */
static bool pins_hold(struct held *held)
{
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	int file;
	void *copy;
	bool holds;

	if (held->pipe[0] >= 0)
		return pipe_holds(held);
	sqe = io_uring_get_sqe(&held->ring);
	file = memfd_create("copy", MFD_CLOEXEC);
	CHECK(ftruncate(file, SIZE) == 0);
	io_uring_prep_write_fixed(sqe, file, held->memory, SIZE, 0, 0);
	CHECK(io_uring_submit_and_wait(&held->ring, 1) == 1);
	CHECK(io_uring_peek_cqe(&held->ring, &cqe) == 0);
	CHECK(cqe->res == (int)SIZE);
	io_uring_cqe_seen(&held->ring, cqe);
	copy = buffer_map(file, SIZE, 0);
	holds = pattern_holds(copy, SIZE, held->seed);
	CHECK(munmap(copy, SIZE) == 0);
	CHECK(close(file) == 0);
	return holds;
}

/* Everybody who has it still finds what was written. */
static void check_content(struct held *held)
{
	if (held->by[MAPPING])
		CHECK(pattern_holds(held->memory, SIZE, held->seed));
	if (held->by[BUFFER]) {
		char *memory = buffer_map(held->buffer, SIZE, 0);

		CHECK(pattern_holds(memory, SIZE, held->seed));
		CHECK(munmap(memory, SIZE) == 0);
	}
	if (held->by[PIN])
		CHECK(pins_hold(held));
}

static void next_order(int order[HOLDERS], int number)
{
	bool used[HOLDERS] = { false };

	for (int i = 0, left = HOLDERS, ways = 24; i < HOLDERS; i++, left--) {
		int skip;

		ways /= left;
		skip = number / ways;
		number %= ways;
		for (order[i] = 0; used[order[i]] || skip; order[i]++)
			skip -= !used[order[i]];
		used[order[i]] = true;
	}
}

static int module_remove(void)
{
	return syscall(SYS_delete_module, "greenboost", O_NONBLOCK);
}

static void module_insert(void)
{
	char path[4096];
	int file;

	/* The first of those that tools/vm built. */
	snprintf(path, sizeof(path), "%s", getenv("GREENBOOST_MODULES"));
	path[strcspn(path, ":")] = 0;
	file = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(file >= 0);
	CHECK(syscall(SYS_finit_module, file, "", 0) == 0);
	CHECK(close(file) == 0);
}

static void every_order_of_letting_go(void)
{
	for (int number = 0; number < 24; number++) {
		int order[HOLDERS];
		struct held held;

		next_order(order, number);
		hold(&held, number + 100);
		for (int i = 0; i < HOLDERS; i++) {
			let_go(&held, order[i]);
			/* Others' pages are not to be had: neither by new buffers nor by the
			 * allocator. */
			int device = device_open(), other = buffer_alloc(device, 2 * SIZE);
			void *memory = buffer_map(other, 2 * SIZE, 0);

			CHECK(all_zero(memory, 2 * SIZE));
			memset(memory, 0xff, 2 * SIZE);
			check_content(&held);
			CHECK(munmap(memory, 2 * SIZE) == 0);
			CHECK(close(other) == 0);
			CHECK(close(device) == 0);
		}
		wait_until_unused();
	}
}

static void the_module_stays_while_it_is_needed(void)
{
	for (int number = 0; number < 24; number++) {
		int order[HOLDERS];
		bool needed = true;
		struct held held;

		next_order(order, number);
		hold(&held, number + 200);
		for (int i = 0; i < HOLDERS && needed; i++) {
			let_go(&held, order[i]);
			needed = held.by[DEVICE_FILE] || held.by[BUFFER] || held.by[MAPPING];
			if (needed)
				REFUSED(EWOULDBLOCK, module_remove());
		}
		wait_until_unused();
		CHECK(module_remove() == 0);
		REFUSED(ENOENT, open(DEVICE, O_RDWR));
		/* Pinned pages do not need it. */
		if (held.by[PIN]) {
			CHECK(pins_hold(&held));
			let_go(&held, PIN);
		}
		module_insert();
	}
}

static void pages_that_others_pinned_do_not_get_into_the_pool(void)
{
	struct held held;

	for (int i = 0; i < 20 && read_number(ATTRIBUTES "pool_bytes"); i++)
		write_number("/proc/sys/vm/drop_caches", 2);
	CHECK(read_number(ATTRIBUTES "pool_bytes") == 0);
	hold(&held, 300);
	let_go(&held, BUFFER);
	let_go(&held, MAPPING);
	wait_until_unused();
	CHECK(read_number(ATTRIBUTES "pool_bytes") == 0);
	let_go(&held, PIN);
}

int main(void)
{
	static const struct ktap_test tests[] = {
		TEST(offsets_and_lengths_are_honoured),
		TEST(outside_of_the_buffer_nothing_is_mapped),
		TEST(private_mappings_are_refused),
		TEST(protection_is_kept),
		TEST(unmapping_a_part_leaves_the_rest),
		TEST(what_is_thrown_out_of_a_mapping_comes_back),
		TEST(a_mapping_can_move_but_not_grow),
		TEST(a_child_shares_the_memory),
		TEST(every_order_of_letting_go),
		TEST(the_module_stays_while_it_is_needed),
		TEST(pages_that_others_pinned_do_not_get_into_the_pool),
	};

	return ktap_run(tests, sizeof(tests) / sizeof(*tests), reset_limits);
}
