// SPDX-License-Identifier: GPL-2.0-only
/* Since 6.8 list_lru_add() wants to be told the node and the cgroup. */
#include <linux/list_lru.h>

bool probe(struct list_lru *lru, struct list_head *item)
{
	return list_lru_add_obj(lru, item);
}
