/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a file has to do in a child of fork(), which has no CUDA and none of the other threads. */
#ifndef GREENBOOST_FORK_H
#define GREENBOOST_FORK_H

#include <pthread.h>

/* Have the function run first thing in every child; once in a file. */
#define IN_EVERY_CHILD(function)                                   \
	__attribute__((constructor)) static void watch_forks(void) \
	{                                                          \
		pthread_atfork(NULL, NULL, function);              \
	}

#endif
