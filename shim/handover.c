// SPDX-License-Identifier: GPL-2.0-or-later
/* What a daemon that takes over has to be told of the chunks. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "residency.h"

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
	for (uint32_t i = 0; i < device->map.count; i++) {
		const struct allocation *a = device->map.sorted[i];

		for (uint32_t c = a->first; c < a->first + a->chunks; c++)
			bytes[c] = device->chunks[c].extent;
	}
	pthread_mutex_unlock(&device->lock);
	munmap(bytes, device->chunk_limit);
	return fd;
}
