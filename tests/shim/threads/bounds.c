// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The bounds of the paged allocations are read without a lock while others come
 * and go: an address that stays allocated must always lie in them.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "alloc_map.c"

#define ADDRESS ((uint64_t)1 << 30)

static struct alloc_map map = { .low = UINT64_MAX };
static atomic_bool over;

static void *change(void *arg)
{
	struct allocation *below[256];

	(void)arg;
	for (int round = 0; round < 1000; round++) {
		for (uint32_t i = 0; i < 256; i++)
			below[i] = alloc_map_add(&map, (i + 1) << 16, 1 << 16, i, 1);
		for (uint32_t i = 0; i < 256; i++)
			alloc_map_remove(&map, below[i]);
	}
	over = true;
	return NULL;
}

int main(void)
{
	unsigned long misses = 0;
	pthread_t thread;

	alloc_map_add(&map, ADDRESS, 1 << 16, 1000, 1);
	pthread_create(&thread, NULL, change, NULL);
	while (!over)
		misses += __atomic_load_n(&map.low, __ATOMIC_RELAXED) > ADDRESS ||
			  __atomic_load_n(&map.high, __ATOMIC_RELAXED) <= ADDRESS;
	pthread_join(thread, NULL);
	if (misses)
		printf("%lu times an allocated address was out of bounds\n", misses);
	return misses != 0;
}
