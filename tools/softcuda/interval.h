/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Disjoint address intervals in order: a sorted array, since look-ups outnumber changes. */
#ifndef SOFTCUDA_INTERVAL_H
#define SOFTCUDA_INTERVAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The first member of whatever is kept in an interval_map. Bytes start to end - 1. */
struct interval {
	uintptr_t start, end;
};

struct interval_map {
	struct interval **items;
	size_t count, room;
};

/* Index of the first interval that ends after address; count when there is none. */
size_t interval_after(const struct interval_map *map, uintptr_t address);

/* The interval that holds address, or NULL. */
struct interval *interval_at(const struct interval_map *map, uintptr_t address);

/* Whether any interval overlaps start to end - 1. */
bool interval_overlaps(const struct interval_map *map, uintptr_t start, uintptr_t end);

/* False when there is no memory for it. The interval must overlap no other. */
bool interval_insert(struct interval_map *map, struct interval *item);

void interval_remove(struct interval_map *map, const struct interval *item);

#endif
