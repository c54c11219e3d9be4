/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads of ours in a process that is not. */
#ifndef GREENBOOST_THREAD_H
#define GREENBOOST_THREAD_H

#include <pthread.h>

/*
 * As pthread_create(), but the thread takes none of the program's signals: it
 * may wait for them elsewhere, and where they are not blocked they would act as
 * if it did not. Returns 0 or an errno value.
 */
int thread_start(pthread_t *thread, void *(*run)(void *), void *arg);

#endif
