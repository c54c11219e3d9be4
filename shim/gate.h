/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * While every chunk is resident nobody looks at launches and copies: they pass
 * this gate for the price of one store, one load and one branch. To begin
 * looking, gate_close() turns the flag and waits for the calls that are already
 * inside the driver, so that from then on none is unseen.
 */
#ifndef GREENBOOST_GATE_H
#define GREENBOOST_GATE_H

#include <stdatomic.h>
#include <stdbool.h>

/* One per thread, on its own cache line: the store must not be shared. */
struct gate_thread {
	_Alignas(64) atomic_bool inside;
	atomic_bool taken;
	struct gate_thread *next;
};

extern atomic_uint gate_closed; /* how many reasons there are to look */
extern __thread struct gate_thread *gate_self;

struct gate_thread *gate_register(void);

/* True: the driver may be called right away, then gate_leave(). False: look first. */
static inline bool gate_enter(void)
{
	struct gate_thread *self = gate_self;

	if (__builtin_expect(!self, 0))
		self = gate_register();
	/* Sequentially consistent: gate_close() stores the flag, then reads this. */
	atomic_store(&self->inside, true);
	if (__builtin_expect(!atomic_load(&gate_closed), 1))
		return true;
	atomic_store_explicit(&self->inside, false, memory_order_release);
	return false;
}

static inline void gate_leave(void)
{
	atomic_store_explicit(&gate_self->inside, false, memory_order_release);
}

/* Must not be called between gate_enter() and gate_leave(). */
void gate_close(void);

/*
 * Captures. A context must not be waited for while one is under way: the driver
 * refuses that and spoils the capture, in every mode and from every thread.
 */
extern atomic_uint gate_captures; /* how many are under way */

void gate_capture_begins(void); /* closes the gate */
void gate_capture_ends(void);

/* False: one is under way. True: those that begin wait for gate_allow_captures(). */
bool gate_forbid_captures(void);
void gate_allow_captures(void);

#endif
