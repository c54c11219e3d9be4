// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "queue.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "settings.h"

/* A submitter waits when this much is queued, as on a device. */
#define QUEUE_LIMIT 1024

struct entry {
	struct entry *next;
	struct work *work;
	uint64_t number;
	uint64_t deadline; /* when late work begins unasked; ns */
	size_t count;
	struct point after[]; /* all to be reached before the work runs */
};

struct queue {
	struct queue_group *group;
	struct queue *next; /* in its group */
	enum queue_order order;
	struct place place;
	unsigned int refs;
	size_t length; /* entries not done */
	uint64_t submitted; /* number of the newest entry */
	uint64_t done; /* number of the last one that ran */
	uint64_t wanted; /* entries up to this number may run */
	struct entry *head, **tail;
	bool has_thread, closing;
	unsigned int waiters; /* on progress */
	bool idle; /* its thread waits on arrival */
	pthread_cond_t arrival; /* of work, or of leave to run it */
	pthread_cond_t progress; /* of done */
};

/*
 * One lock for all queues: submitting reads the state of a whole group, and
 * what it guards is never held for longer than a few list operations. Work runs
 * without it. It guards everything above but what queue_create fixes.
 */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t last_id;
static uint64_t last_number; /* of an entry; counted over all queues, so that it tells the order */

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

struct queue *queue_create(struct queue_group *group, enum queue_order order, int device)
{
	struct queue *queue = calloc(1, sizeof *queue);
	pthread_condattr_t attributes;

	if (!queue)
		return NULL;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&queue->arrival, &attributes);
	pthread_cond_init(&queue->progress, NULL);
	pthread_condattr_destroy(&attributes);
	queue->group = group;
	queue->order = order;
	queue->refs = 1;
	queue->wanted = settings.late ? 0 : UINT64_MAX;
	queue->tail = &queue->head;
	queue->place.device = device;
	pthread_mutex_lock(&lock);
	queue->place.stream = ++last_id;
	queue->next = group->first;
	group->first = queue;
	if (order == QUEUE_LEGACY)
		group->legacy = queue;
	pthread_mutex_unlock(&lock);
	return queue;
}

static void put(struct queue *queue)
{
	if (--queue->refs)
		return;
	pthread_cond_destroy(&queue->arrival);
	pthread_cond_destroy(&queue->progress);
	free(queue);
}

static void leave_group(struct queue *queue)
{
	struct queue **link = &queue->group->first;

	while (*link != queue)
		link = &(*link)->next;
	*link = queue->next;
	if (queue->group->legacy == queue)
		queue->group->legacy = NULL;
}

void queue_close(struct queue *queue)
{
	pthread_mutex_lock(&lock);
	queue->closing = true;
	pthread_cond_signal(&queue->arrival);
	if (!queue->has_thread)
		leave_group(queue);
	put(queue);
	pthread_mutex_unlock(&lock);
}

uint64_t queue_id(const struct queue *queue)
{
	return queue->place.stream;
}

enum queue_order queue_order(const struct queue *queue)
{
	return queue->order;
}

/* Lets a queue run its entries up to number. */
static void want(struct queue *queue, uint64_t number)
{
	if (number <= queue->wanted)
		return;
	queue->wanted = number;
	pthread_cond_signal(&queue->arrival);
}

/* Waits, with the lock held, until a queue has done its entries up to number. */
static void wait_for(struct queue *queue, uint64_t number)
{
	want(queue, number);
	queue->waiters++;
	while (queue->done < number)
		pthread_cond_wait(&queue->progress, &lock);
	queue->waiters--;
}

/* Waits until the head may run. Late work that nobody asks for runs after all in the end. */
static void wait_for_leave(struct queue *queue)
{
	struct entry *head = queue->head;
	struct timespec deadline = {
		.tv_sec = (time_t)(head->deadline / 1000000000),
		.tv_nsec = (long)(head->deadline % 1000000000),
	};

	while (head->number > queue->wanted)
		if (pthread_cond_timedwait(&queue->arrival, &lock, &deadline) == ETIMEDOUT)
			want(queue, head->number);
}

static void free_entry(struct entry *entry)
{
	for (size_t i = 0; i < entry->count; i++)
		put(entry->after[i].queue);
	free(entry);
}

/* Runs the head; called and returns with the lock held. */
static void run_head(struct queue *queue)
{
	struct entry *entry = queue->head;

	for (size_t i = 0; i < entry->count; i++)
		wait_for(entry->after[i].queue, entry->after[i].number);
	pthread_mutex_unlock(&lock);
	work_run(entry->work, &queue->place);
	work_put(entry->work);
	pthread_mutex_lock(&lock);
	queue->head = entry->next;
	if (!queue->head)
		queue->tail = &queue->head;
	queue->length--;
	queue->done = entry->number;
	if (queue->waiters)
		pthread_cond_broadcast(&queue->progress);
	free_entry(entry);
}

static void *queue_thread(void *argument)
{
	struct queue *queue = argument;

	pthread_mutex_lock(&lock);
	for (;;) {
		queue->idle = true;
		while (!queue->head && !queue->closing)
			pthread_cond_wait(&queue->arrival, &lock);
		queue->idle = false;
		if (!queue->head)
			break;
		wait_for_leave(queue);
		run_head(queue);
	}
	leave_group(queue);
	put(queue);
	pthread_mutex_unlock(&lock);
	return NULL;
}

/* The application's signal handlers expect to run on its own threads; faults are ours. */
static bool start_thread(struct queue *queue)
{
	sigset_t all, before;
	pthread_t thread;
	char name[16];
	int error;

	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, NULL, queue_thread, queue);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return false;
	snprintf(name, sizeof name, "softcuda/%u", (unsigned int)queue->place.stream % 1000000);
	pthread_setname_np(thread, name);
	pthread_detach(thread);
	queue->has_thread = true;
	queue->refs++;
	return true;
}

static void wait_after(struct entry *entry, struct queue *queue, uint64_t number)
{
	if (queue->done >= number)
		return;
	queue->refs++;
	entry->after[entry->count++] = (struct point){ queue, number };
}

static struct entry *new_entry(const struct queue *queue, const struct point *after)
{
	struct queue_group *group = queue->group;
	struct entry *entry;
	size_t room = 2;

	if (queue->order == QUEUE_LEGACY)
		for (struct queue *other = group->first; other; other = other->next)
			room++;
	entry = malloc(sizeof *entry + room * sizeof *entry->after);
	if (!entry)
		return NULL;
	entry->count = 0;
	if (after && after->queue)
		wait_after(entry, after->queue, after->number);
	if (queue->order == QUEUE_BLOCKING && group->legacy)
		wait_after(entry, group->legacy, group->legacy->submitted);
	if (queue->order == QUEUE_LEGACY)
		for (struct queue *other = group->first; other; other = other->next)
			if (other->order == QUEUE_BLOCKING)
				wait_after(entry, other, other->submitted);
	return entry;
}

CUresult queue_submit(struct queue *queue, struct work *work, const struct point *after,
		      struct point *end)
{
	struct entry *entry;

	pthread_mutex_lock(&lock);
	while (queue->length >= QUEUE_LIMIT)
		wait_for(queue, queue->head->number);
	entry = new_entry(queue, after);
	if (!entry || (!queue->has_thread && !start_thread(queue))) {
		if (entry)
			free_entry(entry);
		pthread_mutex_unlock(&lock);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	entry->next = NULL;
	entry->work = work_get(work);
	entry->number = queue->submitted = ++last_number;
	entry->deadline = settings.late ? now() + settings.late_limit : 0;
	*queue->tail = entry;
	queue->tail = &entry->next;
	queue->length++;
	if (queue->idle)
		pthread_cond_signal(&queue->arrival);
	if (end) {
		queue->refs++;
		*end = (struct point){ queue, entry->number };
	}
	pthread_mutex_unlock(&lock);
	return CUDA_SUCCESS;
}

struct point queue_end(struct queue *queue)
{
	struct point end;

	pthread_mutex_lock(&lock);
	queue->refs++;
	end = (struct point){ queue, queue->submitted };
	pthread_mutex_unlock(&lock);
	return end;
}

struct point point_get(const struct point *point)
{
	if (point->queue) {
		pthread_mutex_lock(&lock);
		point->queue->refs++;
		pthread_mutex_unlock(&lock);
	}
	return *point;
}

void point_put(struct point *point)
{
	if (point->queue) {
		pthread_mutex_lock(&lock);
		put(point->queue);
		pthread_mutex_unlock(&lock);
	}
	*point = (struct point){ 0 };
}

bool point_reached(const struct point *point)
{
	bool reached;

	if (!point->queue)
		return true;
	pthread_mutex_lock(&lock);
	reached = point->queue->done >= point->number;
	want(point->queue, point->number);
	pthread_mutex_unlock(&lock);
	return reached;
}

void point_wait(const struct point *point)
{
	if (!point->queue)
		return;
	pthread_mutex_lock(&lock);
	wait_for(point->queue, point->number);
	pthread_mutex_unlock(&lock);
}

bool group_reached(struct queue_group *group)
{
	bool reached = true;

	pthread_mutex_lock(&lock);
	for (struct queue *queue = group->first; queue; queue = queue->next) {
		if (queue->order == QUEUE_NON_BLOCKING || !queue->head)
			continue;
		want(queue, queue->submitted);
		reached = false;
	}
	pthread_mutex_unlock(&lock);
	return reached;
}

/* A queue of the group that has entries up to number, referenced. All such may run. */
static struct queue *busy_queue(struct queue_group *group, uint64_t number)
{
	struct queue *busy = NULL;

	for (struct queue *queue = group->first; queue; queue = queue->next) {
		if (!queue->head || queue->head->number > number)
			continue;
		want(queue, number);
		busy = queue;
	}
	if (busy)
		busy->refs++;
	return busy;
}

void group_wait(struct queue_group *group)
{
	struct queue *queue;
	uint64_t number;

	pthread_mutex_lock(&lock);
	number = last_number;
	while ((queue = busy_queue(group, number))) {
		queue->waiters++;
		while (queue->head && queue->head->number <= number)
			pthread_cond_wait(&queue->progress, &lock);
		queue->waiters--;
		put(queue);
	}
	pthread_mutex_unlock(&lock);
}
