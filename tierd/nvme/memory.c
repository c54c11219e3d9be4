// SPDX-License-Identifier: GPL-2.0-or-later
#include "memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* Small enough for the first-level cache, large enough for memcpy() to be at its best. */
#define BLOCK 4096

int gb_repeated_word(const void *memory, size_t length, uint64_t *word)
{
	const char *bytes = memory;

	memcpy(word, bytes, sizeof(*word));
	/* Each word equals the next one. That way libc chooses the instructions, for this machine.
	 */
	return !memcmp(bytes, bytes + sizeof(*word), length - sizeof(*word));
}

void gb_fill(void *memory, size_t length, uint64_t word)
{
	char *bytes = memory;
	size_t done;

	/* Zeros are the common case, and memset() alone may pass the caches by. */
	if (word == (uint8_t)word * UINT64_C(0x0101010101010101)) {
		memset(bytes, (uint8_t)word, length);
		return;
	}
	for (done = 0; done < length && done < BLOCK; done += sizeof(word))
		memcpy(bytes + done, &word, sizeof(word));
	for (; length - done >= BLOCK; done += BLOCK)
		memcpy(bytes + done, bytes, BLOCK);
	memcpy(bytes + done, bytes, length - done);
}

int gb_lock(void *memory, size_t length)
{
	return mlock(memory, length) ? -errno : 0;
}
