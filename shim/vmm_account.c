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

static struct held_allocation as_held(const struct device *device, const struct promise *promise)
{
	return (struct held_allocation){ promise->first, promise->chunks,
					 promise->chunks * device->chunk, 0 };
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
	result = memory_admit(device, as_held(device, &promise));
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

/* Of those that are not more than so many chunks the largest, else the smallest. */
static uint32_t fitting(const struct account *account, uint64_t chunks)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < account->count; i++) {
		uint32_t one = account->promises[i].chunks, other = account->promises[best].chunks;

		if (other > chunks ? one < other : one <= chunks && one > other)
			best = i;
	}
	return best;
}

/* Give back what the bytes do not need. */
static void lower(struct device *device, struct account *account)
{
	uint64_t wanted = chunks_of(device, account->bytes);

	while (account->chunks > wanted) {
		uint64_t excess = account->chunks - wanted;
		uint32_t i = fitting(account, excess);
		struct promise gone = account->promises[i], rest = gone;

		/* In one request: between two, another program might take the rest. */
		if (gone.chunks > excess) {
			rest.chunks -= (uint32_t)excess;
			gone.first += rest.chunks;
			gone.chunks = (uint32_t)excess;
			account->promises[i] = rest;
		} else {
			account->count--;
			memmove(account->promises + i, account->promises + i + 1,
				(account->count - i) * sizeof(gone));
		}
		account->chunks -= gone.chunks;
		count(device, &gone, false);
		if (gone.first == rest.first)
			client_free(&device->client, gone.first);
		else
			client_trim(&device->client, as_held(device, &rest));
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

/* All of them, or none. */
static CUresult admit(struct device *device, const struct held_allocation *chunks, uint32_t parts)
{
	CUresult result = CUDA_SUCCESS;
	uint32_t done = 0;

	while (done < parts && !result)
		result = memory_admit(device, chunks[done++]);
	if (result)
		for (done--; done-- > 0;)
			client_free(&device->client, chunks[done].first);
	return result;
}

CUresult account_turn(struct device *device, uint64_t bytes, const struct held_allocation *chunks,
		      uint32_t parts)
{
	struct account *account = account_of(device);
	CUresult result = admit(device, chunks, parts);

	account->bytes -= bytes;
	lower(device, account);
	/* There was room for one of both. Another program may be quicker now. */
	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		result = admit(device, chunks, parts);
	if (result) {
		account->bytes += bytes;
		raise(device, account);
	}
	return result;
}
