// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Each ioctl, each refusal, the limits, and who may do what.
 */
#define _GNU_SOURCE
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "device.h"

static void buffers_are_zero_and_as_large_as_asked_for(void)
{
	static const size_t sizes[] = { PAGE, 64 * KIB, 2 * MIB - PAGE, 2 * MIB,
					7 * MIB + 3 * PAGE };
	int device = device_open();

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		struct greenboost_alloc alloc;
		void *memory;

		/* Twice: the second time, pages come from the pool. */
		for (int again = 0; again < 2; again++) {
			CHECK(try_alloc(device, sizes[i], &alloc) == 0);
			CHECK(alloc.huge_size == sizes[i] / (2 * MIB) * (2 * MIB));
			CHECK(alloc.size == sizes[i]);
			CHECK(lseek(alloc.fd, 0, SEEK_END) == (off_t)sizes[i]);
			CHECK(fcntl(alloc.fd, F_GETFD) == FD_CLOEXEC);
			CHECK((fcntl(alloc.fd, F_GETFL) & O_ACCMODE) == O_RDWR);
			memory = buffer_map(alloc.fd, sizes[i], 0);
			CHECK(all_zero(memory, sizes[i]));
			memset(memory, 0xa5, sizes[i]);
			CHECK(munmap(memory, sizes[i]) == 0);
			CHECK(close(alloc.fd) == 0);
		}
	}
}

static void what_has_no_meaning_is_refused(void)
{
	static const struct greenboost_alloc wrong[] = {
		{ .size = 0 },
		{ .size = PAGE - 1 },
		{ .size = PAGE + 1 },
		{ .size = UINT64_MAX },
		{ .size = PAGE, .flags = 2 },
		{ .size = PAGE, .flags = 1U << 31 },
		{ .size = PAGE, .node = 1 },
		{ .size = PAGE, .flags = GREENBOOST_ALLOC_NODE, .node = 63 },
		{ .size = PAGE, .flags = GREENBOOST_ALLOC_NODE, .node = 1 << 20 },
		{ .size = PAGE, .flags = GREENBOOST_ALLOC_NODE, .node = UINT32_MAX },
		{ .size = PAGE, .huge_size = 1 },
		{ .size = PAGE, .fd = 1 },
		{ .size = PAGE, .fd = -1 },
		{ .size = PAGE, .pad = 1 },
	};
	int device = device_open();

	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		struct greenboost_alloc alloc = wrong[i];

		REFUSED(EINVAL, ioctl(device, GREENBOOST_IOC_ALLOC, &alloc));
		CHECK(!memcmp(&alloc, &wrong[i], sizeof(alloc)));
	}
	CHECK(device_usage(device).used == 0);
}

static void a_node_that_is_online_is_taken(void)
{
	struct greenboost_alloc alloc = { .size = 4 * MIB, .flags = GREENBOOST_ALLOC_NODE };

	CHECK(ioctl(device_open(), GREENBOOST_IOC_ALLOC, &alloc) == 0);
	CHECK(alloc.huge_size == 4 * MIB);
}

static void other_calls_are_refused(void)
{
	int device = device_open();
	char byte = 0;

	REFUSED(ENOTTY, ioctl(device, _IO(GREENBOOST_IOC_MAGIC, 0)));
	REFUSED(ENOTTY, ioctl(device, _IOWR(GREENBOOST_IOC_MAGIC, 0, uint64_t), &byte));
	REFUSED(ENOTTY, ioctl(device, _IO(GREENBOOST_IOC_MAGIC, 2)));
	REFUSED(EINVAL, read(device, &byte, 1));
	REFUSED(EINVAL, write(device, &byte, 1));
	REFUSED(ESPIPE, lseek(device, 0, SEEK_CUR));
	REFUSED(ENODEV, mmap(NULL, PAGE, PROT_READ, MAP_SHARED, device, 0));
}

static void arguments_out_of_reach_leave_nothing_behind(void)
{
	void *pages =
		mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct greenboost_alloc *alloc = pages;
	int device = device_open();
	int next = dup(device);

	CHECK(pages != MAP_FAILED);
	CHECK(close(next) == 0);
	REFUSED(EFAULT, ioctl(device, GREENBOOST_IOC_ALLOC, NULL));
	REFUSED(EFAULT, ioctl(device, GREENBOOST_IOC_USAGE, NULL));
	alloc->size = 8 * MIB;
	/* It can be read, but the answer cannot be written: there is a buffer already then. */
	CHECK(mprotect(pages, PAGE, PROT_READ) == 0);
	REFUSED(EFAULT, ioctl(device, GREENBOOST_IOC_ALLOC, alloc));
	REFUSED(EFAULT, ioctl(device, GREENBOOST_IOC_USAGE, alloc));
	CHECK(dup(device) == next);
	wait_until_unused();
}

static void without_a_descriptor_left_nothing_is_allocated(void)
{
	struct greenboost_alloc alloc;
	int device = device_open();

	CHECK(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ device + 1, device + 1 }) == 0);
	REFUSED(EMFILE, try_alloc(device, 2 * MIB, &alloc));
	CHECK(device_usage(device).used == 0);
}

static void usage_is_of_the_file_and_of_all(void)
{
	int one = device_open(), other = device_open();
	int first = buffer_alloc(one, 2 * MIB), second = buffer_alloc(one, PAGE);
	int third = buffer_alloc(other, 6 * MIB);

	CHECK(device_usage(one).file_used == 2 * MIB + PAGE);
	CHECK(device_usage(other).file_used == 6 * MIB);
	CHECK(device_usage(one).used == 8 * MIB + PAGE);
	CHECK(read_number(ATTRIBUTES "used_bytes") == 8 * MIB + PAGE);
	CHECK(read_number(ATTRIBUTES "huge_bytes") == 8 * MIB);
	CHECK(read_number(ATTRIBUTES "buffers") == 3);
	CHECK(read_number(ATTRIBUTES "limit_bytes") == device_usage(other).limit);
	CHECK(close(first) == 0);
	CHECK(device_usage(one).file_used == PAGE);
	/* The buffers outlive the file they were allocated through. */
	CHECK(close(one) == 0);
	CHECK(device_usage(other).used == 6 * MIB + PAGE);
	CHECK(close(second) == 0);
	CHECK(close(third) == 0);
	CHECK(device_usage(other).used == 0);
}

static void limits_are_exact_and_told_apart(void)
{
	int one = device_open(), other = device_open();
	struct greenboost_alloc alloc;
	int buffer;

	write_number(PARAMETERS "limit_mib", 16);
	write_number(PARAMETERS "file_limit_mib", 10);
	CHECK(device_usage(one).limit == 16 * MIB);
	CHECK(device_usage(one).file_limit == 10 * MIB);
	REFUSED(EDQUOT, try_alloc(one, 10 * MIB + PAGE, &alloc));
	buffer = buffer_alloc(one, 10 * MIB);
	REFUSED(EDQUOT, try_alloc(one, PAGE, &alloc));
	REFUSED(ENOSPC, try_alloc(other, 6 * MIB + PAGE, &alloc));
	/* What was refused does not count. */
	CHECK(device_usage(other).file_used == 0);
	buffer_alloc(other, 6 * MIB);
	REFUSED(ENOSPC, try_alloc(other, PAGE, &alloc));
	/* A limit below what is in use refuses what is new, and nothing else. */
	write_number(PARAMETERS "limit_mib", 1);
	REFUSED(ENOSPC, try_alloc(other, PAGE, &alloc));
	CHECK(close(buffer) == 0);
	REFUSED(ENOSPC, try_alloc(one, PAGE, &alloc));
	write_number(PARAMETERS "file_limit_mib", 0);
	write_number(PARAMETERS "limit_mib", 0);
	buffer_alloc(one, PAGE);
	/* Without a limit of its own there is still the one for all. */
	CHECK(device_usage(one).file_limit == device_usage(one).limit);
	REFUSED(ENOSPC, try_alloc(one, 1UL << 40, &alloc));
}

enum { RACERS = 16, RACES = 20 };

static void together_processes_get_the_limit_and_no_more(void)
{
	int go[2], got[2], done[2];

	CHECK(pipe(go) == 0 && pipe(got) == 0 && pipe(done) == 0);
	write_number(PARAMETERS "limit_mib", 32);
	for (int race = 0; race < RACES; race++) {
		int total = 0;

		for (int i = 0; i < RACERS; i++) {
			if (fork() == 0) {
				int device = device_open(), count = 0;
				struct greenboost_alloc alloc;
				char byte;

				CHECK(read(go[0], &byte, 1) == 1);
				while (try_alloc(device, MIB / 2, &alloc) == 0)
					count++;
				CHECK(errno == ENOSPC);
				CHECK(write(got[1], &count, sizeof(count)) == sizeof(count));
				/* What it has, it keeps until all have tried. */
				CHECK(read(done[0], &byte, 1) == 1);
				_exit(0);
			}
		}
		char bytes[RACERS] = { 0 };
		int count, status;

		CHECK(write(go[1], bytes, RACERS) == RACERS);
		for (int i = 0; i < RACERS; i++) {
			CHECK(read(got[0], &count, sizeof(count)) == sizeof(count));
			total += count;
		}
		CHECK(total == 64);
		CHECK(read_number(ATTRIBUTES "used_bytes") == 32 * MIB);
		CHECK(write(done[1], bytes, RACERS) == RACERS);
		for (int i = 0; i < RACERS; i++) {
			CHECK(wait(&status) > 0);
			CHECK(status == 0);
		}
		wait_until_unused();
	}
}

static int racing_device;
static pthread_barrier_t racing_barrier;

static void *racing_thread(void *unused)
{
	struct greenboost_alloc alloc;
	long count = 0;

	(void)unused;
	pthread_barrier_wait(&racing_barrier);
	while (try_alloc(racing_device, MIB / 2, &alloc) == 0)
		count++;
	CHECK(errno == EDQUOT);
	return (void *)count;
}

static void together_threads_get_the_limit_of_a_file_and_no_more(void)
{
	CHECK(pthread_barrier_init(&racing_barrier, NULL, RACERS) == 0);
	write_number(PARAMETERS "file_limit_mib", 16);
	for (int race = 0; race < RACES; race++) {
		pthread_t threads[RACERS];
		long total = 0;
		void *count;

		racing_device = device_open();
		for (int i = 0; i < RACERS; i++)
			CHECK(pthread_create(&threads[i], NULL, racing_thread, NULL) == 0);
		for (int i = 0; i < RACERS; i++) {
			CHECK(pthread_join(threads[i], &count) == 0);
			total += (long)count;
		}
		CHECK(total == 32);
		CHECK(device_usage(racing_device).file_used == 16 * MIB);
		CHECK(close_range(racing_device, ~0U, 0) == 0);
	}
}

static void a_process_killed_while_it_allocates_leaves_nothing(void)
{
	for (int delay = 0; delay < 200; delay += 40) {
		pid_t child = fork();
		int status;

		if (child == 0) {
			int device = device_open();
			struct greenboost_alloc alloc;

			for (;;)
				if (try_alloc(device, 700 * MIB, &alloc) == 0)
					close(alloc.fd);
		}
		usleep(delay * 1000);
		CHECK(kill(child, SIGKILL) == 0);
		CHECK(waitpid(child, &status, 0) == child);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		wait_until_unused();
	}
}

/* How often the kernel has killed something for want of memory. */
static long oom_kills(void)
{
	FILE *file = fopen("/proc/vmstat", "re");
	char line[128];
	long count = -1;

	CHECK(file);
	while (count < 0 && fgets(line, sizeof(line), file))
		sscanf(line, "oom_kill %ld", &count);
	fclose(file);
	CHECK(count >= 0);
	return count;
}

static void more_than_there_is_ends_with_enomem_and_kills_nobody(void)
{
	size_t all = device_usage(device_open()).limit / 7 * 8 / PAGE * PAGE;
	struct greenboost_alloc alloc;
	int device = device_open();
	long before = oom_kills();

	write_number(PARAMETERS "limit_mib", 1UL << 20);
	REFUSED(ENOMEM, try_alloc(device, all, &alloc));
	REFUSED(ENOMEM, try_alloc(device, 1UL << 40, &alloc));
	wait_until_unused();
	CHECK(oom_kills() == before);
}

static void become_somebody_else(void)
{
	CHECK(setgroups(0, NULL) == 0);
	CHECK(setresgid(65534, 65534, 65534) == 0);
	CHECK(setresuid(65534, 65534, 65534) == 0);
}

static void others_may_not_open_it(void)
{
	struct stat status;

	CHECK(stat(DEVICE, &status) == 0);
	CHECK((status.st_mode & 07777) == 0660);
	become_somebody_else();
	REFUSED(EACCES, open(DEVICE, O_RDWR));
	REFUSED(EACCES, open(DEVICE, O_RDONLY));
	REFUSED(EACCES, open(PARAMETERS "limit_mib", O_WRONLY));
	CHECK(access(ATTRIBUTES "used_bytes", R_OK) == 0);
}

static void send_descriptor(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 0;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	CHECK(sendmsg(socket, &message, 0) == 1);
}

static int receive_descriptor(int socket)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	int fd;

	CHECK(recvmsg(socket, &message, 0) == 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

static void who_is_given_the_descriptor_has_the_memory(void)
{
	int sockets[2], status;
	void *memory;
	pid_t child;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets) == 0);
	child = fork();
	if (child == 0) {
		become_somebody_else();
		int buffer = receive_descriptor(sockets[1]);

		memory = buffer_map(buffer, 4 * MIB, 0);
		CHECK(pattern_holds(memory, 4 * MIB, 1));
		pattern_write(memory, 4 * MIB, 2);
		_exit(0);
	}
	int buffer = buffer_alloc(device_open(), 4 * MIB);

	memory = buffer_map(buffer, 4 * MIB, 0);
	pattern_write(memory, 4 * MIB, 1);
	send_descriptor(sockets[0], buffer);
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(status == 0);
	CHECK(pattern_holds(memory, 4 * MIB, 2));
}

int main(void)
{
	static const struct ktap_test tests[] = {
		TEST(buffers_are_zero_and_as_large_as_asked_for),
		TEST(what_has_no_meaning_is_refused),
		TEST(a_node_that_is_online_is_taken),
		TEST(other_calls_are_refused),
		TEST(arguments_out_of_reach_leave_nothing_behind),
		TEST(without_a_descriptor_left_nothing_is_allocated),
		TEST(usage_is_of_the_file_and_of_all),
		TEST(limits_are_exact_and_told_apart),
		TEST(together_processes_get_the_limit_and_no_more),
		TEST(together_threads_get_the_limit_of_a_file_and_no_more),
		TEST(a_process_killed_while_it_allocates_leaves_nothing),
		TEST(more_than_there_is_ends_with_enomem_and_kills_nobody),
		TEST(others_may_not_open_it),
		TEST(who_is_given_the_descriptor_has_the_memory),
	};

	return ktap_run(tests, sizeof(tests) / sizeof(*tests), reset_limits);
}
