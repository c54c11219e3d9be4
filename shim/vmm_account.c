// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Promises for memory that was created and is not mapped: cuMemCreate is where programs
 * expect to be refused. The daemon knows allocations by their chunks, and which these will
 * be is not known yet, so they are promised under indexes that are nobody else's.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "memory.h"
#include "vmm.h"

/* Indexes, as admitted by one request. */
struct promise {
	uint32_t first, chunks;
};

struct account {
	struct device *device;
	uint64_t bytes; /* created and not mapped */
	uint64_t chunks; /* promised for them */
	struct promise *promises; /* sorted */
	uint32_t count, room;
};

static struct account accounts[MAX_DEVICES];

static struct account *account_of(struct device *device)
{
	struct account *account = &accounts[device->ordinal];

	/* Of a device that was reset nothing is left. */
	if (account->device != device) {
		free(account->promises);
		*account = (struct account){ .device = device };
	}
	return account;
}

static uint64_t chunks_of(const struct device *device, uint64_t bytes)
{
	return (bytes + device->chunk - 1) / device->chunk;
}

static void count(struct device *device, const struct promise *promise, bool made)
{
	pthread_mutex_lock(&device->lock);
	device->committed += made ? promise->chunks : -(uint64_t)promise->chunks;
	memset(device->state_map + promise->first, made ? STATE_EMPTY : STATE_FREE,
	       promise->chunks);
	pthread_mutex_unlock(&device->lock);
}

/* As many more as the bytes need. */
static CUresult raise(struct device *device, struct account *account)
{
	uint64_t wanted = chunks_of(device, account->bytes);
	struct promise promise = { .first = MEMORY_INDEXES };
	uint32_t at = 0;
	CUresult result;

	if (wanted <= account->chunks)
		return CUDA_SUCCESS;
	if (wanted - account->chunks > MAX_CHUNKS)
		return CUDA_ERROR_OUT_OF_MEMORY;
	promise.chunks = (uint32_t)(wanted - account->chunks);
	if (account->count == account->room) {
		uint32_t room = account->room ? 2 * account->room : 16;
		struct promise *grown = realloc(account->promises, room * sizeof(*grown));

		if (!grown)
			return CUDA_ERROR_OUT_OF_MEMORY;
		account->promises = grown;
		account->room = room;
	}
	while (at < account->count &&
	       account->promises[at].first - promise.first < promise.chunks) {
		promise.first = account->promises[at].first + account->promises[at].chunks;
		at++;
	}
	if (promise.chunks > MAX_CHUNKS - promise.first)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result =
		memory_admit(device, (struct held_allocation){ promise.first, promise.chunks,
							       promise.chunks * device->chunk, 0 });
	if (result)
		return result;
	memmove(account->promises + at + 1, account->promises + at,
		(account->count - at) * sizeof(promise));
	account->promises[at] = promise;
	account->count++;
	account->chunks += promise.chunks;
	count(device, &promise, true);
	return CUDA_SUCCESS;
}

/* Promises that the bytes do not need. They are given back as they were made, or not yet. */
static void lower(struct device *device, struct account *account)
{
	uint64_t wanted = chunks_of(device, account->bytes);

	for (uint32_t i = account->count; i-- > 0 && account->chunks > wanted;) {
		struct promise promise = account->promises[i];

		if (account->chunks - wanted < promise.chunks)
			continue;
		memmove(account->promises + i, account->promises + i + 1,
			(account->count - i - 1) * sizeof(promise));
		account->count--;
		account->chunks -= promise.chunks;
		count(device, &promise, false);
		client_free(&device->client, promise.first);
	}
}

CUresult account_promise(struct device *device, uint64_t bytes)
{
	struct account *account = account_of(device);
	CUresult result;

	account->bytes += bytes;
	result = raise(device, account);
	if (result)
		account->bytes -= bytes;
	return result;
}

void account_release(struct device *device, uint64_t bytes)
{
	struct account *account = account_of(device);

	account->bytes -= bytes;
	lower(device, account);
}

CUresult account_turn(struct device *device, uint64_t bytes, struct held_allocation chunks)
{
	struct account *account = account_of(device);
	CUresult result = memory_admit(device, chunks);

	account->bytes -= bytes;
	lower(device, account);
	/* There was room for one of both. Another program may be quicker now. */
	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		result = memory_admit(device, chunks);
	if (result) {
		account->bytes += bytes;
		raise(device, account);
	}
	return result;
}
