/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Queues: what runs when.
 *
 * A queue does its work one after the other on a thread of its own. Work may
 * first wait for points of other queues; a point is always of work that was
 * submitted before, so queues cannot wait for each other in a circle. Queues of
 * one group (a context's) are ordered as CUDA's legacy default stream asks:
 * work of the legacy queue waits for what the group's blocking queues had, and
 * theirs for what the legacy queue had.
 */
#ifndef SOFTCUDA_QUEUE_H
#define SOFTCUDA_QUEUE_H

#include <stdbool.h>

#include "work.h"

enum queue_order { QUEUE_BLOCKING, QUEUE_NON_BLOCKING, QUEUE_LEGACY };

struct queue;

/* The queues of one context; zeroed at first. */
struct queue_group {
	struct queue *first;
	struct queue *legacy;
};

/* The end of one submitted piece of work; {NULL, 0} has always been reached. */
struct point {
	struct queue *queue;
	uint64_t number;
};

/* A queue of a group, with one reference. NULL: no memory. */
struct queue *queue_create(struct queue_group *group, enum queue_order order, int device);

/* Takes no more work; what it has is done, then it leaves its group. Drops the reference. */
void queue_close(struct queue *queue);

uint64_t queue_id(const struct queue *queue);
enum queue_order queue_order(const struct queue *queue);

/*
 * Submits work to run after what the queue has and after the point `after`.
 * Takes its own reference of the work. Fills in *end, unless NULL, with a point
 * that holds a reference: to be dropped by point_put.
 *
 * Waits while the queue is full. CUDA_ERROR_OUT_OF_MEMORY: no memory or thread.
 */
CUresult queue_submit(struct queue *queue, struct work *work, const struct point *after,
		      struct point *end);

/* A point at the end of what the queue has now. Holds a reference. */
struct point queue_end(struct queue *queue);

struct point point_get(const struct point *point);
void point_put(struct point *point);

/* Whether it was reached. Asking lets late work begin (SOFTCUDA_LATE). */
bool point_reached(const struct point *point);
void point_wait(const struct point *point);

/* Whether all is done that work of the legacy queue would wait for. Asking lets late work begin. */
bool group_reached(struct queue_group *group);

/* Waits for all that the group's queues have. */
void group_wait(struct queue_group *group);

#endif
