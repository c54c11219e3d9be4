// SPDX-License-Identifier: GPL-2.0-or-later
#include "gate.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "fork.h"

atomic_uint gate_closed;
atomic_uint gate_captures;
static pthread_mutex_t captures_lock = PTHREAD_MUTEX_INITIALIZER; /* held: none may begin */
__thread struct gate_thread *gate_self;

/* Pushed to, never removed from: a thread that ends leaves its entry to the next one. */
static struct gate_thread *_Atomic threads;
static pthread_key_t leave_key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;

static void thread_ends(void *self)
{
	gate_self = NULL;
	atomic_store(&((struct gate_thread *)self)->taken, false);
}

static void make_key(void)
{
	if (pthread_key_create(&leave_key, thread_ends))
		abort(); /* more than a thousand keys: nothing could work */
}

struct gate_thread *gate_register(void)
{
	struct gate_thread *self;

	pthread_once(&key_once, make_key);
	for (self = atomic_load(&threads); self; self = self->next) {
		bool expected = false;

		if (atomic_compare_exchange_strong(&self->taken, &expected, true))
			break;
	}
	if (!self) {
		self = aligned_alloc(64, sizeof(*self));
		if (!self)
			abort(); /* an unseen launch would corrupt data */
		*self = (struct gate_thread){ .taken = true, .next = atomic_load(&threads) };
		while (!atomic_compare_exchange_weak(&threads, &self->next, self))
			;
	}
	gate_self = self;
	pthread_setspecific(leave_key, self);
	return self;
}

void gate_close(void)
{
	atomic_fetch_add(&gate_closed, 1);
	/* Calls inside the driver end by themselves; a full launch queue drains. */
	for (struct gate_thread *t = atomic_load(&threads); t; t = t->next)
		while (atomic_load(&t->inside))
			sched_yield();
}

void gate_capture_begins(void)
{
	pthread_mutex_lock(&captures_lock);
	atomic_fetch_add(&gate_captures, 1);
	pthread_mutex_unlock(&captures_lock);
	gate_close();
}

void gate_capture_ends(void)
{
	atomic_fetch_sub(&gate_captures, 1);
	atomic_fetch_sub(&gate_closed, 1); /* a reason less */
}

bool gate_forbid_captures(void)
{
	pthread_mutex_lock(&captures_lock);
	if (!atomic_load(&gate_captures))
		return true;
	pthread_mutex_unlock(&captures_lock);
	return false;
}

void gate_allow_captures(void)
{
	pthread_mutex_unlock(&captures_lock);
}

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_mutex_init(&captures_lock, NULL);
	atomic_store(&gate_captures, 0);
	atomic_store(&gate_closed, 0);
	/* Those who were inside are not there to leave. */
	for (struct gate_thread *t = atomic_load(&threads); t; t = t->next) {
		atomic_store(&t->inside, false);
		atomic_store(&t->taken, t == gate_self);
	}
}

IN_EVERY_CHILD(in_child)
