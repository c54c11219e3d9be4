// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "spool.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "thread.h"

/* Entries that may wait for the writer; the driver's launch queue is far shorter. */
#define QUEUE_MOST 32768
#define BUFFER_BYTES (256 << 10)
/* An idle writer writes what it has, so that a killed program leaves nearly all of it. */
#define IDLE_NS 100000000
/* At the end of the program the writer has this long to finish. */
#define END_SECONDS 5

uint64_t spool_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the writer ---- */

static void flush(struct spool *spool)
{
	size_t at = 0;

	while (!spool->failed && at < spool->used) {
		ssize_t n = write(spool->fd, spool->buffer + at, spool->used - at);

		if (n < 0 && errno != EINTR) {
			log_warn("%s has stopped: %s", spool->what, strerror(errno));
			spool->failed = true;
		}
		at += n > 0 ? (size_t)n : 0;
	}
	spool->used = 0;
}

void spool_line(struct spool *spool)
{
	if (BUFFER_BYTES - spool->used < spool->line_most)
		flush(spool);
}

void spool_put(struct spool *spool, const char *format, ...)
{
	size_t room = BUFFER_BYTES - spool->used;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(spool->buffer + spool->used, room, format, args);
	va_end(args);
	/* Never cut: whoever puts more than line_most begins a line now and then. */
	if (n > 0 && (size_t)n < room)
		spool->used += (size_t)n;
}

void spool_put_text(struct spool *spool, const char *text)
{
	spool_put(spool, "\"");
	for (; *text; text++) {
		if (BUFFER_BYTES - spool->used < 2)
			flush(spool);
		spool->buffer[spool->used++] =
			*text < ' ' || *text > '~' || *text == '"' || *text == '\\' ? '?' : *text;
	}
	spool_put(spool, "\"");
}

static void rest(struct spool *spool)
{
	if (spool->idle)
		spool->idle();
	flush(spool);
}

/* The next entry that is complete, still counted as waiting; NULL: there will be none. */
static struct spool_entry *next_entry(struct spool *spool)
{
	struct spool_entry *entry;

	pthread_mutex_lock(&spool->lock);
	for (;;) {
		struct timespec until;

		entry = spool->first;
		/* At the end nobody waits for a launch that another thread is just making. */
		if ((entry && entry->ended) || spool->closing)
			break;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += IDLE_NS;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		if (pthread_cond_timedwait(&spool->changed, &spool->lock, &until)) {
			pthread_mutex_unlock(&spool->lock);
			rest(spool);
			pthread_mutex_lock(&spool->lock);
		}
	}
	if (entry && !entry->ended)
		entry = NULL;
	if (entry) {
		spool->first = entry->next;
		if (!spool->first)
			spool->last = &spool->first;
	}
	pthread_mutex_unlock(&spool->lock);
	return entry;
}

static void written(struct spool *spool)
{
	pthread_mutex_lock(&spool->lock);
	spool->waiting--;
	pthread_cond_broadcast(&spool->changed);
	pthread_mutex_unlock(&spool->lock);
}

static void *writer_thread(void *arg)
{
	struct spool *spool = arg;
	struct spool_entry *entry;

	pthread_setname_np(pthread_self(), "greenboost-rec");
	if (spool->begin)
		spool->begin();
	while ((entry = next_entry(spool))) {
		spool_line(spool);
		spool->write(entry);
		free(entry);
		written(spool);
	}
	rest(spool);
	pthread_mutex_lock(&spool->lock);
	spool->finished = true;
	pthread_cond_broadcast(&spool->changed);
	pthread_mutex_unlock(&spool->lock);
	return NULL;
}

/* ---- everybody else ---- */

bool spool_open(struct spool *spool, int fd)
{
	spool->buffer = malloc(BUFFER_BYTES);
	if (!spool->buffer) {
		log_warn("no %s: no memory", spool->what);
		close(fd);
		return false;
	}
	spool->fd = fd;
	spool->last = &spool->first;
	return true;
}

bool spool_start(struct spool *spool)
{
	pthread_t thread;

	if (thread_start(&thread, writer_thread, spool)) {
		log_warn("no %s: no thread for it", spool->what);
		return false;
	}
	/* Nobody joins it: who ends waits until all is written, but not for ever. */
	pthread_detach(thread);
	return true;
}

void spool_add(struct spool *spool, struct spool_entry *entry, bool ended)
{
	entry->next = NULL;
	entry->ended = ended;
	pthread_mutex_lock(&spool->lock);
	*spool->last = entry;
	spool->last = &entry->next;
	spool->waiting++;
	pthread_cond_broadcast(&spool->changed);
	pthread_mutex_unlock(&spool->lock);
}

void spool_end(struct spool *spool, struct spool_entry *entry)
{
	pthread_mutex_lock(&spool->lock);
	entry->ended = true;
	pthread_cond_broadcast(&spool->changed);
	pthread_mutex_unlock(&spool->lock);
}

void spool_wait_for_room(struct spool *spool)
{
	pthread_mutex_lock(&spool->lock);
	while (spool->waiting >= QUEUE_MOST && !spool->finished)
		pthread_cond_wait(&spool->changed, &spool->lock);
	pthread_mutex_unlock(&spool->lock);
}

void spool_drain(struct spool *spool, bool close)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += END_SECONDS;
	pthread_mutex_lock(&spool->lock);
	spool->closing |= close;
	pthread_cond_broadcast(&spool->changed);
	while (!spool->finished && (close || spool->waiting))
		if (pthread_cond_timedwait(&spool->changed, &spool->lock, &until))
			break;
	pthread_mutex_unlock(&spool->lock);
}
