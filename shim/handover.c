// SPDX-License-Identifier: GPL-2.0-or-later
/* From one daemon to the next: what it has to be told of the chunks, and what of them it has. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "residency.h"

/* Of the memfd that is read at a time. */
#define PIECE 4096

/*
 * T3 may turn out to have lost what it had, encrypted paths always. So a chunk that has another
 * copy keeps that until it is known.
 */
void residency_daemon_gone(void *arg)
{
	struct device *device = arg;

	pthread_mutex_lock(&device->lock);
	device->doubt = device->untold = true;
	/* Its recalls are void: the next one has its own. */
	device->recall_count = 0;
	for (uint32_t i = 0; i < device->mover.arena_count; i++) {
		device->mover.arenas[i].leaving = false;
		device->mover.arenas[i].stays = 0;
	}
	/* What is just leaving has to be T3's, or VRAM's again, when that is known. */
	while (device->relying && !device->stopped)
		pthread_cond_wait(&device->changed, &device->lock);
	pthread_mutex_unlock(&device->lock);
}

int residency_counted_on(void *arg)
{
	struct device *device = arg;
	int fd = memfd_create("greenboost-extents", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	unsigned char *bytes = MAP_FAILED;

	if (fd < 0)
		return -1;
	if (!ftruncate(fd, device->chunk_limit))
		bytes = mmap(NULL, device->chunk_limit, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (bytes == MAP_FAILED) {
		close(fd);
		return -1;
	}
	/*
	 * One that is being spilled is not counted on, and spilled again; one that is being fetched
	 * is, and fetched again.
	 */
	pthread_mutex_lock(&device->lock);
	device->untold = false;
	for (uint32_t i = 0; i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];

		for (uint32_t c = a->first; c < a->first + a->chunks; c++)
			bytes[c] = device->chunks[c].extent;
	}
	pthread_mutex_unlock(&device->lock);
	munmap(bytes, device->chunk_limit);
	return fd;
}

/* In the lock. */
static void lose_copies(struct device *device, const struct allocation *a, int counted_on)
{
	unsigned char there[PIECE];

	for (uint32_t i = 0; i < a->chunks; i++) {
		struct chunk *chunk = &device->chunks[a->first + i];

		if (i % PIECE == 0) {
			ssize_t got = counted_on < 0 ? 0
						     : pread(counted_on, there, sizeof(there),
							     a->first + i);

			if (got < 0)
				got = 0;
			memset(there + got, 0, sizeof(there) - got);
		}
		/* What has no other copy is found to be lost when it is fetched. */
		if (!there[i % PIECE] && chunk->home != HOME_T3)
			chunk->extent = false;
	}
}

void residency_settled(void *arg, int counted_on)
{
	struct device *device = arg;

	pthread_mutex_lock(&device->lock);
	for (uint32_t i = 0; i < device->map.count; i++)
		lose_copies(device, device->map.sorted[i], counted_on);
	device->doubt = false;
	device->prefetch = true;
	pthread_cond_signal(&device->work);
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
}
