/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What was noted of device work, written to a file as lines by a thread of its own,
 * which may wait for the work where the program must not. What a line looks like is
 * the business of record.c and trace_write.c.
 */
#ifndef GREENBOOST_SPOOL_H
#define GREENBOOST_SPOOL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whatever is to be written begins with this. Allocated by malloc(); the spool's once it is added.
 */
struct spool_entry {
	struct spool_entry *next;
	bool ended; /* guarded by the spool's lock */
};

struct spool {
	const char *what; /* in messages: "recording" */
	size_t line_most; /* bytes that spool_put() may add before the next spool_line() */
	void (*write)(struct spool_entry *entry); /* by the thread; the spool frees it then */
	void (*begin)(void); /* NULL, or what the thread does first */
	void (*idle)(void); /* NULL, or what it does when it has written all, and last of all */

	int fd;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	struct spool_entry *first, **last;
	uint32_t waiting; /* not yet written */
	bool closing, finished;

	char *buffer; /* the thread's; before it is started, its starter's */
	size_t used;
	bool failed;
};

#define SPOOL(...)                                                                                \
	{                                                                                         \
		.fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, \
		__VA_ARGS__                                                                       \
	}

/* fd is consumed. Lines may be put before spool_start(). False, and said: there is no memory or no
 * thread for it. */
bool spool_open(struct spool *spool, int fd);
bool spool_start(struct spool *spool);

/* ended: it is complete, else spool_end() follows, and nothing that was added later is written
 * before. */
void spool_add(struct spool *spool, struct spool_entry *entry, bool ended);
void spool_end(struct spool *spool, struct spool_entry *entry);

/* Wait until the thread has caught up with all but some thousands. In no lock. */
void spool_wait_for_room(struct spool *spool);

/* Until all that was added is in the file, some seconds at most; close: and nothing can be added.
 */
void spool_drain(struct spool *spool, bool close);

/* The writer's: a line begins, and what was put before may go to the file. */
void spool_line(struct spool *spool);
__attribute__((format(printf, 2, 3))) void spool_put(struct spool *spool, const char *format, ...);
/* A string of JSON, of any length if it is a line's only such: what would need escaping is a '?'.
 */
void spool_put_text(struct spool *spool, const char *text);

uint64_t spool_now(void); /* CLOCK_MONOTONIC, ns */

#endif
