// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Two threads launch into one stream and enter their tickets in the other order:
 * what is remembered of the chunk must be the later one.
 */
#include <stdio.h>

#include "release.c"

struct driver driver; /* is not called */

const char *driver_error(CUresult error)
{
	(void)error;
	return "";
}

int main(void)
{
	struct ticket tickets[2] = {
		{ .stream = 99, .sequence = 1, .references = 1 },
		{ .stream = 99, .sequence = 2, .references = 1 },
	};
	struct chunk chunk = { .slot = 0 };

	residency_add_use(&chunk, &tickets[1]);
	residency_add_use(&chunk, &tickets[0]);
	if (chunk.uses[0] == &tickets[1] && !chunk.uses[1])
		return 0;
	puts("the chunk may leave once the earlier of its uses is over");
	return 1;
}
