// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "ticket.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "fork.h"

/*
 * Tickets are never freed, only pooled, so the list of all of them can be
 * walked without counting references; there are as many as launches were ever
 * in flight at once.
 */
static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static struct ticket *pool;
static _Atomic uint64_t sequence;
static struct ticket **all;
static size_t all_count, all_room;
atomic_bool tickets_spoilt;

static CUresult spoils(CUresult result)
{
	if (result == CUDA_ERROR_ILLEGAL_ADDRESS)
		atomic_store(&tickets_spoilt, true);
	return result;
}

uint64_t stream_key(CUstream stream, unsigned int variant)
{
	if (!stream)
		stream = variant ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY;
	if (stream == CU_STREAM_PER_THREAD)
		return (uint64_t)gettid() << 8 | (uintptr_t)CU_STREAM_PER_THREAD;
	return (uintptr_t)stream;
}

static struct ticket *ticket_new(void)
{
	struct ticket *ticket, **link = &pool;
	CUcontext context;

	if (driver.cuCtxGetCurrent(&context) || !context)
		return NULL;
	pthread_mutex_lock(&pool_lock);
	/* An event can be recorded in streams of its own context alone. */
	while (*link && (*link)->context != context)
		link = &(*link)->next;
	ticket = *link;
	if (ticket)
		*link = ticket->next;
	pthread_mutex_unlock(&pool_lock);
	if (ticket)
		return ticket;

	ticket = calloc(1, sizeof(*ticket));
	if (!ticket || driver.cuEventCreate(&ticket->event, CU_EVENT_DISABLE_TIMING)) {
		free(ticket);
		return NULL;
	}
	ticket->context = context;
	pthread_mutex_lock(&pool_lock);
	if (all_count == all_room) {
		size_t room = all_room ? 2 * all_room : 256;
		struct ticket **grown = realloc(all, room * sizeof(*all));

		if (!grown) {
			pthread_mutex_unlock(&pool_lock);
			driver.cuEventDestroy_v2(ticket->event);
			free(ticket);
			return NULL;
		}
		all = grown;
		all_room = room;
	}
	all[all_count++] = ticket;
	pthread_mutex_unlock(&pool_lock);
	return ticket;
}

static void ticket_recycle(struct ticket *ticket)
{
	pthread_mutex_lock(&pool_lock);
	ticket->next = pool;
	pool = ticket;
	pthread_mutex_unlock(&pool_lock);
}

struct ticket *ticket_record(CUstream stream, unsigned int variant)
{
	struct ticket *ticket = ticket_new();

	if (!ticket)
		return NULL;
	atomic_store(&ticket->done, false);
	atomic_store(&ticket->references, 1);
	atomic_store(&ticket->stream, stream_key(stream, variant));
	ticket->sequence = atomic_fetch_add(&sequence, 1);
	if (spoils(driver_event_record(ticket->event, stream, variant))) {
		ticket_recycle(ticket);
		return NULL;
	}
	return ticket;
}

struct ticket *ticket_get(struct ticket *ticket)
{
	if (ticket)
		atomic_fetch_add_explicit(&ticket->references, 1, memory_order_relaxed);
	return ticket;
}

void ticket_put(struct ticket *ticket)
{
	if (ticket && atomic_fetch_sub_explicit(&ticket->references, 1, memory_order_acq_rel) == 1)
		ticket_recycle(ticket);
}

bool ticket_poll(struct ticket *ticket)
{
	if (ticket_done(ticket))
		return true;
	if (spoils(driver.cuEventQuery(ticket->event)))
		return false;
	atomic_store_explicit(&ticket->done, true, memory_order_release);
	return true;
}

CUresult ticket_wait(struct ticket *ticket)
{
	CUresult result = CUDA_SUCCESS;

	if (ticket_done(ticket))
		return result;
	result = spoils(driver.cuEventSynchronize(ticket->event));
	if (result == CUDA_SUCCESS)
		atomic_store_explicit(&ticket->done, true, memory_order_release);
	return result;
}

CUresult ticket_wait_on(struct ticket *ticket, CUstream stream, unsigned int variant)
{
	if (ticket_done(ticket))
		return CUDA_SUCCESS;
	return driver_stream_wait(stream, ticket->event, variant);
}

void tickets_forget_context(CUcontext context)
{
	pthread_mutex_lock(&pool_lock);
	for (size_t i = 0; i < all_count; i++)
		if (all[i]->context == context)
			all[i]->context = NULL;
	pthread_mutex_unlock(&pool_lock);
}

void tickets_forget_stream(uint64_t key)
{
	pthread_mutex_lock(&pool_lock);
	for (size_t i = 0; i < all_count; i++) {
		uint64_t expected = key;

		atomic_compare_exchange_strong(&all[i]->stream, &expected, 0);
	}
	pthread_mutex_unlock(&pool_lock);
}

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_mutex_init(&pool_lock, NULL);
	pool = NULL;
	all = NULL;
	all_count = all_room = 0;
}

IN_EVERY_CHILD(in_child)
