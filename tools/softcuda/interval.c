// SPDX-License-Identifier: GPL-2.0-or-later
#include "interval.h"

#include <stdlib.h>
#include <string.h>

size_t interval_after(const struct interval_map *map, uintptr_t address)
{
	size_t low = 0, high = map->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (map->items[middle]->end > address)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

struct interval *interval_at(const struct interval_map *map, uintptr_t address)
{
	size_t i = interval_after(map, address);

	return i < map->count && map->items[i]->start <= address ? map->items[i] : NULL;
}

bool interval_overlaps(const struct interval_map *map, uintptr_t start, uintptr_t end)
{
	size_t i = interval_after(map, start);

	return i < map->count && map->items[i]->start < end;
}

bool interval_insert(struct interval_map *map, struct interval *item)
{
	size_t i = interval_after(map, item->start);

	if (map->count == map->room) {
		size_t room = map->room ? 2 * map->room : 64;
		struct interval **items = realloc(map->items, room * sizeof(struct interval *));

		if (!items)
			return false;
		map->items = items;
		map->room = room;
	}
	memmove(map->items + i + 1, map->items + i, (map->count - i) * sizeof(struct interval *));
	map->items[i] = item;
	map->count++;
	return true;
}

void interval_remove(struct interval_map *map, const struct interval *item)
{
	size_t i = interval_after(map, item->start);

	map->count--;
	memmove(map->items + i, map->items + i + 1, (map->count - i) * sizeof(struct interval *));
}
