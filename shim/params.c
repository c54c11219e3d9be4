// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "params.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "fork.h"
#include "function.h"
#include "log.h"

struct layout {
	CUfunction function;
	struct layout *next; /* in its bucket */
	uint32_t count;
	CUresult end; /* what the driver said after the last one */
	uint32_t sizes[];
};

#define BUCKETS 4096

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct layout *buckets[BUCKETS];

static size_t bucket_of(CUfunction f)
{
	return ((uintptr_t)f >> 4) * 0x9e3779b97f4a7c15u >> 52;
}

/*
 * The runtime passes CUkernel handles where a CUfunction is declared, and each
 * of the driver's two questions fails on the other's handles.
 */
static CUresult parameter(CUfunction f, bool kernel, size_t index, size_t *size)
{
	size_t offset;

	return kernel ? driver.cuKernelGetParamInfo((CUkernel)f, index, &offset, size)
		      : driver.cuFuncGetParamInfo(f, index, &offset, size);
}

/* Sizes of all parameters, by one of the questions. NULL: no memory. */
static struct layout *ask_as(CUfunction f, bool kernel)
{
	uint32_t count = 0, room = 16;
	struct layout *layout = malloc(sizeof(*layout) + room * sizeof(uint32_t));
	CUresult result;
	size_t size;

	while (layout && !(result = parameter(f, kernel, count, &size))) {
		if (count == room) {
			struct layout *grown =
				realloc(layout, sizeof(*layout) + 2 * room * sizeof(uint32_t));

			if (!grown)
				free(layout);
			layout = grown;
			room *= 2;
			if (!layout)
				return NULL;
		}
		layout->sizes[count++] = (uint32_t)size;
	}
	if (!layout)
		return NULL;
	layout->function = f;
	layout->count = count;
	layout->end = result;
	return layout;
}

/* INVALID_VALUE is the driver's way to say that there are no more, or none at all. */
static bool answered(const struct layout *layout)
{
	return layout->end == CUDA_ERROR_INVALID_VALUE;
}

static struct layout *ask(CUfunction f)
{
	struct layout *layout = ask_as(f, true), *other;

	function_of(f); /* its name may be wanted when the driver answers nothing any more */
	if (!layout || layout->count)
		return layout;
	other = ask_as(f, false);
	/* A kernel without parameters has none by either question, and one of them is wrong. */
	if (other && (other->count || !answered(layout))) {
		free(layout);
		layout = other;
	} else {
		free(other);
	}
	if (!answered(layout))
		log_warn("the driver does not tell a kernel's parameters (%s): what it reads "
			 "cannot be seen",
			 driver_error(layout->end));
	return layout;
}

static const struct layout *find(CUfunction f)
{
	struct layout *layout;

	for (layout = buckets[bucket_of(f)]; layout && layout->function != f; layout = layout->next)
		;
	return layout;
}

static void scan_bytes(const void *bytes, size_t size, uint64_t low, uint64_t high,
		       params_found found, void *arg)
{
	for (size_t at = 0; at + 8 <= size; at += 8) {
		uint64_t value;

		memcpy(&value, (const char *)bytes + at, 8);
		if (value >= low && value < high)
			found(arg, value);
	}
}

/* The packed buffer that an extra list names; NULL: none. */
static const void *packed(void **extra, size_t *size)
{
	const void *buffer = NULL;

	*size = 0;
	for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
		if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER)
			buffer = extra[1];
		else if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE)
			*size = *(const size_t *)extra[1];
	}
	return buffer;
}

/* Takes the lock: what it returns is there until that is released. NULL: no memory. */
static const struct layout *layout_of(CUfunction f)
{
	const struct layout *layout;
	struct layout *made;

	pthread_rwlock_rdlock(&lock);
	layout = find(f);
	if (!layout) {
		pthread_rwlock_unlock(&lock);
		made = ask(f); /* two threads may both ask; the first answer stays */
		pthread_rwlock_wrlock(&lock);
		layout = find(f);
		if (layout) {
			free(made);
		} else if (made) {
			made->next = buckets[bucket_of(f)];
			buckets[bucket_of(f)] = made;
			layout = made;
		}
	}
	return layout;
}

void params_scan(CUfunction f, void **params, void **extra, uint64_t low, uint64_t high,
		 params_found found, void *arg)
{
	const struct layout *layout;

	if (!params) {
		size_t size;
		const void *buffer = extra ? packed(extra, &size) : NULL;

		if (buffer)
			scan_bytes(buffer, size, low, high, found, arg);
		return;
	}
	layout = layout_of(f);
	for (uint32_t i = 0; layout && i < layout->count; i++)
		if (layout->sizes[i] >= 8)
			scan_bytes(params[i], layout->sizes[i], low, high, found, arg);
	pthread_rwlock_unlock(&lock);
}

static CUresult copy_packed(void **extra, struct params **copy)
{
	size_t size;
	const void *buffer = packed(extra, &size);
	struct {
		struct params params;
		void *list[5];
		size_t size;
		_Alignas(16) char bytes[];
	} *made = malloc(sizeof(*made) + size);

	if (!made)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (buffer)
		memcpy(made->bytes, buffer, size);
	made->size = size;
	made->list[0] = CU_LAUNCH_PARAM_BUFFER_POINTER;
	made->list[1] = made->bytes;
	made->list[2] = CU_LAUNCH_PARAM_BUFFER_SIZE;
	made->list[3] = &made->size;
	made->list[4] = CU_LAUNCH_PARAM_END;
	made->params = (struct params){ .extra = made->list };
	*copy = &made->params;
	return CUDA_SUCCESS;
}

/* Where parameters are whole vectors the driver may read them as such. */
static size_t aligned(size_t bytes)
{
	return (bytes + 15) & ~(size_t)15;
}

static CUresult copy_pointed(const struct layout *layout, void **params, struct params **copy)
{
	size_t bytes = aligned(sizeof(**copy) + layout->count * sizeof(void *));
	struct params *made;
	char *to;

	for (uint32_t i = 0; i < layout->count; i++)
		bytes += aligned(layout->sizes[i]);
	made = malloc(bytes);
	if (!made)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*made = (struct params){ .params = (void **)(made + 1) };
	to = (char *)made + aligned(sizeof(*made) + layout->count * sizeof(void *));
	for (uint32_t i = 0; i < layout->count; i++) {
		made->params[i] = memcpy(to, params[i], layout->sizes[i]);
		to += aligned(layout->sizes[i]);
	}
	*copy = made;
	return CUDA_SUCCESS;
}

CUresult params_copy(CUfunction f, void **params, void **extra, struct params **copy)
{
	const struct layout *layout;
	CUresult result;

	if (!params && extra)
		return copy_packed(extra, copy);
	if (!params) {
		*copy = calloc(1, sizeof(**copy));
		return *copy ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
	}
	layout = layout_of(f);
	if (!layout)
		result = CUDA_ERROR_OUT_OF_MEMORY;
	else if (layout->end != CUDA_ERROR_INVALID_VALUE)
		result = CUDA_ERROR_NOT_FOUND;
	else
		result = copy_pointed(layout, params, copy);
	pthread_rwlock_unlock(&lock);
	return result;
}

void params_forget(void)
{
	functions_forget();
	pthread_rwlock_wrlock(&lock);
	for (size_t i = 0; i < BUCKETS; i++) {
		while (buckets[i]) {
			struct layout *next = buckets[i]->next;

			free(buckets[i]);
			buckets[i] = next;
		}
	}
	pthread_rwlock_unlock(&lock);
}

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_rwlock_init(&lock, NULL);
	memset(buckets, 0, sizeof(buckets));
}

IN_EVERY_CHILD(in_child)
