// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "space.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

/*
 * Device addresses come from one window that nothing else in the process can
 * be given, so a freed address stays one that faults.
 */
#define WINDOW_LARGEST ((size_t)4 << 40)
#define WINDOW_SMALLEST ((size_t)16 << 30)
#define WINDOW_ALIGNMENT ((uintptr_t)1 << 30)
/* Low, where NVIDIA's driver puts reservations that nobody has a place for, if it is free. */
#define WINDOW_HINT ((void *)0x300000000)

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct interval_map reservations; /* lock */
static struct interval_map spans; /* lock */
static uintptr_t window_start, window_end;
static uintptr_t cursor; /* lock; where the search for room goes on */
static uint64_t last_id; /* lock */

CUresult space_init(void)
{
	for (size_t bytes = WINDOW_LARGEST; bytes >= WINDOW_SMALLEST; bytes /= 2) {
		void *window = mmap(WINDOW_HINT, bytes, PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (window == MAP_FAILED)
			continue;
		/* A core dump or a fork has no use for it. */
		madvise(window, bytes, MADV_DONTDUMP);
		window_start = ((uintptr_t)window + WINDOW_ALIGNMENT - 1) & -WINDOW_ALIGNMENT;
		window_end = (uintptr_t)window + bytes;
		cursor = window_start;
		return CUDA_SUCCESS;
	}
	return CUDA_ERROR_OUT_OF_MEMORY;
}

void space_read_lock(void)
{
	pthread_rwlock_rdlock(&lock);
}

void space_write_lock(void)
{
	pthread_rwlock_wrlock(&lock);
}

void space_unlock(void)
{
	pthread_rwlock_unlock(&lock);
}

static bool in_window(uintptr_t start, uintptr_t end)
{
	return start < window_end && end > window_start;
}

/* The first free place in the window at or after from; 0 when there is none before the end. */
static uintptr_t find_room(uintptr_t from, size_t bytes, size_t alignment)
{
	size_t i = interval_after(&reservations, from);

	for (;;) {
		uintptr_t start = (from + alignment - 1) & -(uintptr_t)alignment;

		if (start < from || start > window_end || window_end - start < bytes)
			return 0;
		while (i < reservations.count && reservations.items[i]->end <= start)
			i++;
		if (i == reservations.count || reservations.items[i]->start >= start + bytes)
			return start;
		from = reservations.items[i]->end;
	}
}

static struct reservation *insert(uintptr_t start, size_t bytes, bool ours)
{
	struct reservation *reservation = calloc(1, sizeof *reservation);

	if (!reservation)
		return NULL;
	reservation->at = (struct interval){ start, start + bytes };
	reservation->ours = ours;
	if (interval_insert(&reservations, &reservation->at))
		return reservation;
	free(reservation);
	return NULL;
}

/* At an address that the caller chose; NULL when it is taken. */
static struct reservation *reserve_at(uintptr_t hint, size_t bytes)
{
	struct reservation *reservation;
	void *place;

	if (hint + bytes < hint || interval_overlaps(&reservations, hint, hint + bytes))
		return NULL;
	if (hint >= window_start && hint + bytes <= window_end)
		return insert(hint, bytes, false);
	if (in_window(hint, hint + bytes))
		return NULL;
	/* Not MAP_FIXED_NOREPLACE: the thread sanitizer has other plans for most addresses. */
	place = mmap((void *)hint, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		     -1, 0);
	if (place == MAP_FAILED)
		return NULL;
	if ((uintptr_t)place == hint) {
		reservation = insert(hint, bytes, true);
		if (reservation)
			return reservation;
	}
	munmap(place, bytes);
	return NULL;
}

struct reservation *space_reserve(size_t bytes, size_t alignment, uintptr_t hint)
{
	struct reservation *reservation = NULL;
	uintptr_t start;

	if (hint && !(hint & (alignment - 1)))
		reservation = reserve_at(hint, bytes);
	if (reservation)
		return reservation;
	/* On from the last place, so that a freed address is not soon somebody else's. */
	start = find_room(cursor, bytes, alignment);
	if (!start)
		start = find_room(window_start, bytes, alignment);
	if (!start)
		return NULL;
	reservation = insert(start, bytes, false);
	if (reservation)
		cursor = reservation->at.end;
	return reservation;
}

void space_release(struct reservation *reservation)
{
	interval_remove(&reservations, &reservation->at);
	if (reservation->ours)
		munmap((void *)reservation->at.start, reservation->at.end - reservation->at.start);
	free(reservation);
}

struct reservation *space_reservation(uintptr_t start, uintptr_t end)
{
	struct interval *at = interval_at(&reservations, start);

	return at && end <= at->end ? (struct reservation *)at : NULL;
}

void space_close(uintptr_t start, uintptr_t end)
{
	mmap((void *)start, end - start, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	madvise((void *)start, end - start, MADV_DONTDUMP);
}

struct span *span_new(enum span_kind kind, uintptr_t start, size_t bytes)
{
	struct span *span = calloc(1, sizeof *span);

	if (!span)
		return NULL;
	span->kind = kind;
	span->at = (struct interval){ start, start + bytes };
	span->id = ++last_id;
	return span;
}

bool space_insert(struct span *span)
{
	return interval_insert(&spans, &span->at);
}

void space_remove(struct span *span)
{
	interval_remove(&spans, &span->at);
}

struct span *space_at(uintptr_t address)
{
	return (struct span *)interval_at(&spans, address);
}

bool space_overlaps(uintptr_t start, uintptr_t end)
{
	return interval_overlaps(&spans, start, end);
}

static struct span *nth(size_t index)
{
	return index < spans.count ? (struct span *)spans.items[index] : NULL;
}

struct span *space_next(uintptr_t address)
{
	return nth(interval_after(&spans, address));
}

/* Whether an access may run from one span into the next, as a copy engine's may. */
static bool joins(const struct span *a, const struct span *b)
{
	return a->at.end == b->at.start && a->kind == b->kind && a->kind != SPAN_ALLOC;
}

/*
 * One address space serves all devices, so what one may touch, all may: stricter
 * would need a page table each.
 */
int span_access(const struct span *span)
{
	int access = CU_MEM_ACCESS_FLAGS_PROT_NONE;

	if (span->kind != SPAN_MAPPING)
		return CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	for (int device = 0; device < MAX_DEVICES; device++)
		access |= span->access[device];
	return access;
}

static bool accessible(const struct span *span)
{
	return span_access(span) != CU_MEM_ACCESS_FLAGS_PROT_NONE;
}

static enum range_kind classify(uintptr_t start, uintptr_t end)
{
	size_t i = interval_after(&spans, start);
	struct span *span = nth(i), *next;

	if (!span || span->at.start >= end) {
		bool device = in_window(start, end) || interval_overlaps(&reservations, start, end);

		return device ? RANGE_BROKEN : RANGE_PAGEABLE;
	}
	if (span->at.start > start || !accessible(span))
		return RANGE_BROKEN;
	for (; span->at.end < end; span = next) {
		next = nth(++i);
		if (!next || !joins(span, next) || !accessible(next))
			return RANGE_BROKEN;
	}
	return span->kind == SPAN_HOST ? RANGE_HOST : RANGE_DEVICE;
}

bool space_grants(uintptr_t start, size_t bytes, CUdevice device)
{
	bool granted = true;

	space_read_lock();
	for (size_t i = interval_after(&spans, start); granted; i++) {
		const struct span *span = nth(i);

		if (!span || span->at.start >= start + bytes)
			break;
		granted = span->kind != SPAN_MAPPING || span->access[device];
	}
	space_unlock();
	return granted;
}

enum range_kind space_classify(uintptr_t start, size_t bytes)
{
	enum range_kind kind;

	if (start + bytes < start)
		return RANGE_BROKEN;
	space_read_lock();
	kind = classify(start, start + bytes);
	space_unlock();
	return kind;
}
