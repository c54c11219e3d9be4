// SPDX-License-Identifier: GPL-2.0-or-later
#include "grace.h"

#include <stdlib.h>
#include <string.h>

#include "residency.h"

/*
 * Launches that may follow what one wrote. Only those count that name paged memory, which is
 * what costs something: between the two of a grouped product there is often none, and seldom
 * more than one that fills the workspace.
 */
#define FOLLOWERS 4

/* Of VRAM, as what to divide it by: what may stay, and what if it is for the latest launch alone.
 */
#define SHARE 4
#define SHARE_LATEST 2

/* over: behind it nobody follows what the launch wrote; NULL: that is given up. */
static void end(struct device *device, uint32_t n, struct ticket *over)
{
	struct grace *grace = &device->grace;
	struct graced gone = grace->launches[n];

	for (uint32_t i = 0; i < gone.count; i++) {
		struct chunk *chunk = &device->chunks[gone.chunks[i]];

		chunk->grace--;
		/* There is no place only if so many other streams use it. */
		if (over)
			residency_add_use(chunk, over);
	}
	grace->chunks -= gone.count;
	grace->count--;
	memmove(&grace->launches[n], &grace->launches[n + 1],
		(grace->count - n) * sizeof(grace->launches[0]));
	grace->launches[grace->count] = gone; /* its array is the next one's */
}

static void begin(struct device *device, const struct hold *hold, uint64_t stream,
		  struct ticket *ticket)
{
	struct grace *grace = &device->grace;
	uint64_t most = residency_capacity(device) / SHARE;
	struct graced *launch;
	uint32_t count = 0;

	for (uint32_t i = 0; i < hold->count; i++)
		count += !hold_guesses(hold, i);
	/* Perhaps as much as fits, for what an address names is not known. */
	if (count > residency_capacity(device) / SHARE_LATEST)
		return;
	while (grace->count == GRACE_LAUNCHES || (grace->count && grace->chunks + count > most))
		/* What follows a table at once lies before this launch. */
		end(device, 0, grace->launches[0].stream == stream ? ticket : NULL);
	launch = &grace->launches[grace->count];
	if (launch->room < count) {
		uint32_t *grown = realloc(launch->chunks, count * sizeof(*grown));

		if (!grown)
			return;
		launch->chunks = grown;
		launch->room = count;
	}
	launch->stream = stream;
	launch->followers = 0;
	launch->count = 0;
	for (uint32_t i = 0; i < hold->count; i++) {
		if (hold_guesses(hold, i))
			continue;
		device->chunks[hold->chunks[i]].grace++;
		launch->chunks[launch->count++] = hold->chunks[i];
	}
	grace->chunks += count;
	grace->count++;
}

void grace_launched(struct device *device, const struct hold *hold, struct ticket *ticket)
{
	struct grace *grace = &device->grace;
	uint64_t stream = atomic_load(&ticket->stream);

	for (uint32_t n = grace->count; n-- > 0;)
		if (grace->launches[n].stream == stream &&
		    ++grace->launches[n].followers >= FOLLOWERS)
			end(device, n, ticket);
	if (hold->few)
		begin(device, hold, stream, ticket);
}

void grace_forget(struct device *device, uint32_t first, uint64_t chunks)
{
	struct grace *grace = &device->grace;

	for (uint32_t n = 0; n < grace->count; n++) {
		struct graced *launch = &grace->launches[n];
		uint32_t kept = 0;

		for (uint32_t i = 0; i < launch->count; i++)
			if (launch->chunks[i] < first || launch->chunks[i] >= first + chunks)
				launch->chunks[kept++] = launch->chunks[i];
		grace->chunks -= launch->count - kept;
		launch->count = kept;
	}
}
