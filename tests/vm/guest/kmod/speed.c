// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * usage: speed ROUNDS
 *
 * Prints for each round, in milliseconds: a buffer of 256 MiB from the system, the same from the
 * pool, and zeroing its pages as the kernel does it. pool_mib decides what there is in the pool.
 */
#include <time.h>

#include "device.h"

static const size_t size = 256 * MIB;

static double now(void)
{
	struct timespec time;

	CHECK(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
	return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static double allocate(int device, unsigned long pool_mib)
{
	double begun;
	int buffer;

	if (!pool_mib)
		write_number(PARAMETERS "pool_mib", 0);
	begun = now();
	buffer = buffer_alloc(device, size);
	begun = now() - begun;
	write_number(PARAMETERS "pool_mib", 512);
	CHECK(close(buffer) == 0);
	return begun;
}

static double zero(int device)
{
	int buffer = buffer_alloc(device, size);
	char *memory = buffer_map(buffer, size, 0);
	double begun = now();

	/* As clear_page() on a processor without "erms", which the guest's is. */
	for (size_t i = 0; i < size; i += PAGE) {
		void *page = memory + i;
		unsigned long words = PAGE / 8;

		__asm__ volatile("rep stosq" : "+D"(page), "+c"(words) : "a"(0) : "memory");
	}
	begun = now() - begun;
	CHECK(munmap(memory, size) == 0);
	CHECK(close(buffer) == 0);
	return begun;
}

int main(int argc, char **argv)
{
	int device = device_open();

	CHECK(argc == 2);
	for (int i = 0; i < atoi(argv[1]); i++) {
		double system = allocate(device, 0), pool = allocate(device, 512);

		printf("%f %f %f\n", system, pool, zero(device));
	}
	return 0;
}
