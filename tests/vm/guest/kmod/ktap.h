/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tests that print KTAP, as Documentation/dev-tools/ktap.rst has it. Each runs in a process of its
 * own, so that one that fails leaves nothing to the next: neither descriptors nor memory nor
 * another user.
 */
#ifndef KTAP_H
#define KTAP_H

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Seconds. Under emulation, on a busy machine, the longest takes 20. */
#define KTAP_TIMEOUT 120

struct ktap_test {
	const char *name;
	void (*run)(void);
};

#define TEST(function)                             \
	{                                          \
		.name = #function, .run = function \
	}

/* Ends the test unless the condition holds. */
#define CHECK(condition)                                                                \
	do {                                                                            \
		if (!(condition)) {                                                     \
			printf("# %s:%d: not so: %s (errno: %s)\n", __FILE__, __LINE__, \
			       #condition, strerror(errno));                            \
			fflush(stdout);                                                 \
			_exit(1);                                                       \
		}                                                                       \
	} while (0)

/* The call fails, and with this errno. */
#define REFUSED(expected, call)             \
	do {                                \
		errno = 0;                  \
		CHECK((long)(call) == -1);  \
		CHECK(errno == (expected)); \
	} while (0)

static inline int ktap_run(const struct ktap_test *tests, int count, void (*before_each)(void))
{
	int failed = 0;

	printf("KTAP version 1\n1..%d\n", count);
	for (int i = 0; i < count; i++) {
		int status = 0;
		pid_t child;

		fflush(stdout);
		child = fork();
		if (child == 0) {
			setpgid(0, 0);
			alarm(KTAP_TIMEOUT);
			before_each();
			tests[i].run();
			fflush(stdout);
			_exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child)
			status = -1;
		/* Whatever it started goes with it. */
		if (child > 0)
			kill(-child, SIGKILL);
		failed += status != 0;
		printf("%sok %d %s", status ? "not " : "", i + 1, tests[i].name);
		if (status > 0 && WIFSIGNALED(status))
			printf(" # signal %d", WTERMSIG(status));
		printf("\n");
	}
	return failed != 0;
}

#endif /* KTAP_H */
