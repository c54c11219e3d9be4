// SPDX-License-Identifier: GPL-2.0-only
/* Until 6.12 the callback is given the list's lock. */
#include <linux/list_lru.h>

static enum lru_status isolate(struct list_head *item, struct list_lru_one *list, spinlock_t *lock,
			       void *arg)
{
	return LRU_SKIP;
}

list_lru_walk_cb probe(void)
{
	return isolate;
}
