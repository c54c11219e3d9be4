/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The device, its limits and its buffers, for tests: what fails ends the test.
 */
#ifndef DEVICE_H
#define DEVICE_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "../../../../kmod/uapi/greenboost.h"
#include "../../../../kmod/uapi/greenboost_netlink.h"
#include "ktap.h"

#define KIB 1024UL
#define MIB (1024 * KIB)
#define PAGE 4096UL
#define DEVICE "/dev/greenboost"
#define ATTRIBUTES "/sys/class/greenboost/greenboost/"
#define PARAMETERS "/sys/module/greenboost/parameters/"

static inline int device_open(void)
{
	int device = open(DEVICE, O_RDWR | O_CLOEXEC);

	CHECK(device >= 0);
	return device;
}

/* As ioctl(2); the descriptor is in @alloc. */
static inline int try_alloc(int device, uint64_t size, struct greenboost_alloc *alloc)
{
	*alloc = (struct greenboost_alloc){ .size = size };
	return ioctl(device, GREENBOOST_IOC_ALLOC, alloc);
}

static inline int buffer_alloc(int device, uint64_t size)
{
	struct greenboost_alloc alloc;

	CHECK(try_alloc(device, size, &alloc) == 0);
	return alloc.fd;
}

static inline void *buffer_map(int buffer, size_t size, off_t offset)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, buffer, offset);

	CHECK(memory != MAP_FAILED);
	return memory;
}

static inline struct greenboost_usage device_usage(int device)
{
	struct greenboost_usage usage;

	CHECK(ioctl(device, GREENBOOST_IOC_USAGE, &usage) == 0);
	return usage;
}

static inline struct greenboost_state device_state(int device)
{
	struct greenboost_state state;

	CHECK(ioctl(device, GREENBOOST_IOC_STATE, &state) == 0);
	return state;
}

/* As ioctl(2). */
static inline int try_bind(int device, int eventfd)
{
	struct greenboost_eventfd argument = { .fd = eventfd };

	return ioctl(device, GREENBOOST_IOC_EVENTFD, &argument);
}

static inline int try_report(int device, uint64_t total, uint64_t used)
{
	struct greenboost_t3 argument = { .total = total, .used = used };

	return ioctl(device, GREENBOOST_IOC_T3, &argument);
}

static inline unsigned long read_number(const char *path)
{
	FILE *file = fopen(path, "re");
	unsigned long number;

	CHECK(file);
	CHECK(fscanf(file, "%lu", &number) == 1);
	fclose(file);
	return number;
}

static inline void write_number(const char *path, unsigned long number)
{
	FILE *file = fopen(path, "we");

	CHECK(file);
	CHECK(fprintf(file, "%lu\n", number) > 0);
	CHECK(fclose(file) == 0);
}

static inline void set_watermarks(unsigned long min, unsigned long low, unsigned long high)
{
	/* In this order, one that is higher than before is never met from above in between. */
	write_number(PARAMETERS "high_watermark", high);
	write_number(PARAMETERS "low_watermark", low);
	write_number(PARAMETERS "min_watermark", min);
}

/*
 * More than there can be: at once, memory is short. With the level's watermark at 0 it is not,
 * however little there is.
 */
#define ALL_MIB 1000000UL

static inline void set_level(enum greenboost_level level)
{
	set_watermarks(level == GREENBOOST_LEVEL_CRITICAL ? ALL_MIB : 0,
		       level == GREENBOOST_LEVEL_CALM ? 0 : ALL_MIB, 0);
}

/* Whatever the test before has left. */
static inline void reset_limits(void)
{
	set_level(GREENBOOST_LEVEL_CALM);
	write_number(PARAMETERS "limit_mib", 0);
	write_number(PARAMETERS "file_limit_mib", 0);
}

/* A descriptor's or mapping's end may be worked off a little later, by another thread of the
 * kernel's. */
static inline void wait_until_unused(void)
{
	for (int i = 0; i < 1000 && read_number(ATTRIBUTES "used_bytes"); i++)
		usleep(10000);
	CHECK(read_number(ATTRIBUTES "used_bytes") == 0);
	CHECK(read_number(ATTRIBUTES "buffers") == 0);
	CHECK(read_number(ATTRIBUTES "huge_bytes") == 0);
}

/* Where in the page at @offset its content is. */
static inline size_t pattern_place(size_t offset)
{
	return offset / PAGE % 500 * 8;
}

/* Every page another content, and every one another than with another @seed. */
static inline void pattern_write(void *memory, size_t size, uint64_t seed)
{
	for (size_t i = 0; i < size; i += PAGE)
		*(uint64_t *)((char *)memory + i + pattern_place(i)) = seed + i;
}

/* Whether @page is the one at @offset. */
static inline bool pattern_holds_at(const void *page, size_t offset, uint64_t seed)
{
	return *(const uint64_t *)((const char *)page + pattern_place(offset)) == seed + offset;
}

static inline bool pattern_holds(const void *memory, size_t size, uint64_t seed)
{
	for (size_t i = 0; i < size; i += PAGE)
		if (!pattern_holds_at((const char *)memory + i, i, seed))
			return false;
	return true;
}

static inline bool all_zero(const void *memory, size_t size)
{
	static const char zeroes[PAGE];

	for (size_t i = 0; i < size; i += PAGE)
		if (memcmp((const char *)memory + i, zeroes, PAGE))
			return false;
	return true;
}

#endif /* DEVICE_H */
