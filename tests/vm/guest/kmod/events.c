// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Eventfds of open files, the state, reports of T3, and how far an allocation is.
 *
 * Levels come from watermarks that are above all memory or at zero, so that they change at once and
 * only when a test says so. While the level is not calm, events are repeated: how many there are is
 * asserted only where it is.
 */
#define _GNU_SOURCE
#include <grp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "device.h"

static int eventfd_open(void)
{
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	CHECK(fd >= 0);
	return fd;
}

/* Since it was last asked. */
static uint64_t signals(int fd)
{
	uint64_t count;

	if (read(fd, &count, sizeof(count)) == sizeof(count))
		return count;
	CHECK(errno == EAGAIN);
	return 0;
}

static uint64_t changes(void)
{
	return read_number(ATTRIBUTES "level_changes");
}

/* Two changes, calm again. */
static void low_and_calm(void)
{
	set_level(GREENBOOST_LEVEL_LOW);
	set_level(GREENBOOST_LEVEL_CALM);
}

static void a_change_is_signalled(void)
{
	int device = device_open(), fd = eventfd_open();
	uint64_t before = changes();

	CHECK(try_bind(device, fd) == 0);
	CHECK(signals(fd) == 0);
	set_level(GREENBOOST_LEVEL_LOW);
	CHECK(signals(fd) >= 1);
	set_level(GREENBOOST_LEVEL_CRITICAL);
	CHECK(signals(fd) >= 1);
	set_level(GREENBOOST_LEVEL_CALM);
	CHECK(signals(fd) >= 1);
	/* Each of the changes, and calm is not repeated. */
	CHECK(changes() - before >= 3);
	CHECK(signals(fd) == 0);
}

static void what_has_no_meaning_is_refused(void)
{
	int device = device_open(), fd = eventfd_open();
	struct greenboost_eventfd bind = { .fd = fd, .flags = 1 };
	int pipes[2];

	CHECK(pipe(pipes) == 0);
	CHECK(try_bind(device, fd) == 0);
	REFUSED(EINVAL, ioctl(device, GREENBOOST_IOC_EVENTFD, &bind));
	bind = (struct greenboost_eventfd){ .fd = -1, .flags = 1U << 31 };
	REFUSED(EINVAL, ioctl(device, GREENBOOST_IOC_EVENTFD, &bind));
	REFUSED(EINVAL, try_bind(device, device));
	REFUSED(EINVAL, try_bind(device, pipes[1]));
	REFUSED(EBADF, try_bind(device, -2));
	REFUSED(EBADF, try_bind(device, 1000));
	REFUSED(EFAULT, ioctl(device, GREENBOOST_IOC_EVENTFD, NULL));
	REFUSED(EFAULT, ioctl(device, GREENBOOST_IOC_STATE, NULL));
	REFUSED(EFAULT, ioctl(device, GREENBOOST_IOC_T3, NULL));
	/* What was bound before stays bound. */
	low_and_calm();
	CHECK(signals(fd) >= 2);
}

static void each_open_file_has_one_of_its_own(void)
{
	int one = device_open(), other = device_open();
	int first = eventfd_open(), second = eventfd_open(), third = eventfd_open();

	CHECK(try_bind(one, first) == 0);
	CHECK(try_bind(other, second) == 0);
	low_and_calm();
	CHECK(signals(first) >= 2 && signals(second) >= 2);

	/* In place of the one before. */
	CHECK(try_bind(one, third) == 0);
	low_and_calm();
	CHECK(signals(first) == 0 && signals(second) >= 2 && signals(third) >= 2);

	CHECK(try_bind(other, -1) == 0);
	low_and_calm();
	CHECK(signals(second) == 0 && signals(third) >= 2);
	/* There is none to take away, and that is no mistake. */
	CHECK(try_bind(other, -1) == 0);

	/* The same one twice: both files signal it. */
	CHECK(try_bind(one, first) == 0);
	low_and_calm();
	CHECK(signals(first) < 4);
	CHECK(try_bind(other, first) == 0);
	CHECK(try_bind(other, first) == 0);
	low_and_calm();
	CHECK(signals(first) >= 4);
}

static void descriptors_are_closed_in_any_order(void)
{
	int device, fd, copy, buffer;

	/* The eventfd first: nobody can see it any more, and it is signalled all the same. */
	device = device_open();
	fd = eventfd_open();
	CHECK(try_bind(device, fd) == 0);
	CHECK(close(fd) == 0);
	low_and_calm();
	CHECK(close(device) == 0);
	low_and_calm();

	/* The open file first. */
	device = device_open();
	fd = eventfd_open();
	CHECK(try_bind(device, fd) == 0);
	CHECK(close(device) == 0);
	low_and_calm();
	CHECK(signals(fd) == 0);

	/* It is open until its last descriptor is closed, ... */
	device = device_open();
	copy = dup(device);
	CHECK(copy >= 0);
	CHECK(try_bind(device, fd) == 0);
	CHECK(close(device) == 0);
	low_and_calm();
	CHECK(signals(fd) >= 2);
	/* ... and no longer, also if there is memory that was allocated through it. */
	buffer = buffer_alloc(copy, 2 * MIB);
	CHECK(close(copy) == 0);
	low_and_calm();
	CHECK(signals(fd) == 0);
	CHECK(close(buffer) == 0);
	wait_until_unused();
}

static void a_child_shares_it_and_does_not_take_it_along(void)
{
	int device = device_open(), fd = eventfd_open(), status;
	pid_t child;

	CHECK(try_bind(device, fd) == 0);
	CHECK(try_report(device, 10, 5) == 0);
	child = fork();
	if (child == 0) {
		CHECK(close(device) == 0);
		CHECK(close(fd) == 0);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(status == 0);
	low_and_calm();
	CHECK(signals(fd) >= 2);
	CHECK(device_state(device).t3_total == 10);
}

static void a_full_eventfd_holds_up_nobody(void)
{
	int device = device_open(), fd = eventfd_open();
	uint64_t most = UINT64_MAX - 1;

	CHECK(try_bind(device, fd) == 0);
	CHECK(write(fd, &most, sizeof(most)) == sizeof(most));
	low_and_calm();
	low_and_calm();
	/* eventfd(2): what read() can return at most. */
	CHECK(signals(fd) == UINT64_MAX);
}

static void the_state_is_what_attributes_say(void)
{
	int device = device_open();
	struct greenboost_state state;

	set_watermarks(0, 100, 200);
	CHECK(try_report(device, 1000, 400) == 0);
	buffer_alloc(device, 6 * MIB);
	state = device_state(device);
	CHECK(state.level == GREENBOOST_LEVEL_CALM);
	CHECK(state.wanted == 0);
	CHECK(state.min_watermark == 0);
	CHECK(state.low_watermark == 100 * MIB);
	CHECK(state.high_watermark == 200 * MIB);
	CHECK(state.used == 6 * MIB);
	CHECK(state.t3_total == 1000 && state.t3_used == 400);
	CHECK(state.idle == read_number(ATTRIBUTES "pool_bytes"));
	CHECK(state.seq == changes());
	CHECK(state.ooms == read_number(ATTRIBUTES "ooms"));
	CHECK(state.low_watermark == read_number(ATTRIBUTES "low_watermark_bytes"));
	CHECK(state.high_watermark == read_number(ATTRIBUTES "high_watermark_bytes"));
	CHECK(state.t3_used == read_number(ATTRIBUTES "t3_used_bytes"));
	CHECK(state.available > 100 * MIB);
	CHECK(state.pad == 0);

	set_level(GREENBOOST_LEVEL_CRITICAL);
	state = device_state(device);
	CHECK(state.level == GREENBOOST_LEVEL_CRITICAL);
	CHECK(state.deadline_ms == 0);
	CHECK(state.seq == changes());
	CHECK(state.wanted == ALL_MIB * MIB - state.available);
}

static void reports_are_added_up_and_gone_at_the_end(void)
{
	int one = device_open(), other = device_open(), buffer;
	struct greenboost_t3 wrong[] = {
		{ .total = 1, .used = 2 },
		{ .total = 1, .flags = 1 },
		{ .total = 1, .pad = 1 },
		{ .used = UINT64_MAX },
	};

	CHECK(try_report(one, 1000, 100) == 0);
	CHECK(try_report(other, 500, 500) == 0);
	CHECK(device_state(one).t3_total == 1500 && device_state(one).t3_used == 600);
	/* In place of the one before. */
	CHECK(try_report(one, 300, 30) == 0);
	CHECK(device_state(other).t3_total == 800 && device_state(other).t3_used == 530);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		REFUSED(EINVAL, ioctl(one, GREENBOOST_IOC_T3, &wrong[i]));
	REFUSED(EOVERFLOW, try_report(one, UINT64_MAX - 499, 0));
	CHECK(device_state(other).t3_total == 800 && device_state(other).t3_used == 530);
	CHECK(try_report(one, UINT64_MAX - 500, UINT64_MAX - 500) == 0);
	CHECK(device_state(one).t3_total == UINT64_MAX && device_state(one).t3_used == UINT64_MAX);
	CHECK(try_report(one, 0, 0) == 0);
	CHECK(device_state(one).t3_total == 500);
	/* Also if memory outlives the file. */
	buffer = buffer_alloc(other, PAGE);
	CHECK(close(other) == 0);
	CHECK(device_state(one).t3_total == 0 && device_state(one).t3_used == 0);
	CHECK(close(buffer) == 0);
}

static void without_room_in_t3_it_is_critical(void)
{
	int device = device_open(), other = device_open();
	unsigned long mib = device_state(device).available / MIB;
	uint64_t wanted;

	/* Low, and available RAM is between the watermarks: some 1000 MiB are wanted. */
	set_level(GREENBOOST_LEVEL_LOW);
	set_watermarks(0, mib / 2, mib + 1000);
	CHECK(device_state(device).level == GREENBOOST_LEVEL_LOW);
	wanted = device_state(device).wanted;
	CHECK(try_report(device, wanted, wanted / 2) == 0);
	CHECK(device_state(device).level == GREENBOOST_LEVEL_CRITICAL);
	CHECK(device_state(device).cause == GREENBOOST_CAUSE_T3);
	/* Room is what all have together. That there is just enough does not change it back yet,
	 * ... */
	CHECK(try_report(other, wanted, 0) == 0);
	CHECK(device_state(device).level == GREENBOOST_LEVEL_CRITICAL);
	/* ... but twice as much does. */
	CHECK(try_report(other, 2 * wanted, 0) == 0);
	CHECK(device_state(device).level == GREENBOOST_LEVEL_LOW);
	CHECK(device_state(device).cause == GREENBOOST_CAUSE_T3);
	CHECK(try_report(other, 2 * wanted, 2 * wanted) == 0);
	CHECK(device_state(device).level == GREENBOOST_LEVEL_CRITICAL);
	/* Who has no T3 says nothing about its room. */
	CHECK(close(other) == 0);
	CHECK(try_report(device, 0, 0) == 0);
	CHECK(device_state(device).level == GREENBOOST_LEVEL_LOW);
}

static void become_member_of(gid_t group)
{
	CHECK(setgroups(0, NULL) == 0);
	CHECK(setresgid(group, group, group) == 0);
	CHECK(setresuid(65534, 65534, 65534) == 0);
}

/* The group of the device, as udev sets it. */
enum { GROUP = 4242 };

static void members_of_the_group_use_it_and_do_not_meet(void)
{
	int status, fd = eventfd_open(), device = device_open();

	CHECK(chown(DEVICE, 0, GROUP) == 0);
	CHECK(try_bind(device, fd) == 0);
	CHECK(try_report(device, 100, 10) == 0);
	write_number(PARAMETERS "file_limit_mib", 4);
	buffer_alloc(device, 4 * MIB);
	if (fork() == 0) {
		CHECK(close_range(device, device, 0) == 0);
		become_member_of(GROUP);
		device = device_open();
		/* What the other has used up is nothing of ours, and what it bound is not lost. */
		CHECK(device_usage(device).file_used == 0);
		buffer_alloc(device, 4 * MIB);
		CHECK(try_bind(device, -1) == 0);
		CHECK(try_report(device, 7, 7) == 0);
		CHECK(try_report(device, 0, 0) == 0);
		CHECK(device_state(device).t3_total == 100);
		REFUSED(EACCES, open(PARAMETERS "low_watermark", O_WRONLY));
		CHECK(access(ATTRIBUTES "level", R_OK) == 0);
		_exit(0);
	}
	CHECK(wait(&status) > 0);
	CHECK(chown(DEVICE, 0, 0) == 0);
	CHECK(status == 0);
	low_and_calm();
	CHECK(signals(fd) >= 2);
}

static int progress_device;
static atomic_bool progress_seen;

static void *allocate_until_seen(void *unused)
{
	(void)unused;
	while (!progress_seen)
		CHECK(close(buffer_alloc(progress_device, 400 * MIB)) == 0);
	return NULL;
}

/* Three times the same allocation, with ever less of it to come. */
static void how_far_an_allocation_is_can_be_seen(void)
{
	struct greenboost_usage usage;
	unsigned int seen = 0;
	uint64_t last = 0;
	pthread_t thread;

	progress_device = device_open();
	CHECK(pthread_create(&thread, NULL, allocate_until_seen, NULL) == 0);
	while (seen < 3) {
		usage = device_usage(progress_device);
		CHECK(usage.file_pending <= usage.file_used && usage.pending <= usage.used);
		if (usage.file_pending == last)
			continue;
		seen = usage.file_pending && usage.file_pending < last ? seen + 1 : 0;
		last = usage.file_pending ?: UINT64_MAX;
	}
	progress_seen = true;
	CHECK(pthread_join(thread, NULL) == 0);
	usage = device_usage(progress_device);
	CHECK(usage.pending == 0 && usage.file_pending == 0);
	CHECK(read_number(ATTRIBUTES "pending_bytes") == 0);
}

int main(void)
{
	static const struct ktap_test tests[] = {
		TEST(a_change_is_signalled),
		TEST(what_has_no_meaning_is_refused),
		TEST(each_open_file_has_one_of_its_own),
		TEST(descriptors_are_closed_in_any_order),
		TEST(a_child_shares_it_and_does_not_take_it_along),
		TEST(a_full_eventfd_holds_up_nobody),
		TEST(the_state_is_what_attributes_say),
		TEST(reports_are_added_up_and_gone_at_the_end),
		TEST(without_room_in_t3_it_is_critical),
		TEST(members_of_the_group_use_it_and_do_not_meet),
		TEST(how_far_an_allocation_is_can_be_seen),
	};

	return ktap_run(tests, sizeof(tests) / sizeof(*tests), reset_limits);
}
