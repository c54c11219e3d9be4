// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * usage: flip COUNT
 *
 * Changes the level COUNT times as fast as that goes, and prints the seconds it took. The level
 * must be low: reports of a T3 without room make it critical, those of one with much room low
 * again.
 */
#include <time.h>

#include "device.h"

int main(int argc, char **argv)
{
	long count = argc == 2 ? atol(argv[1]) : 0;
	int device = device_open();
	struct timespec start, end;

	CHECK(count > 0 && device_state(device).level == GREENBOOST_LEVEL_LOW);
	CHECK(clock_gettime(CLOCK_MONOTONIC, &start) == 0);
	for (long i = 0; i < count; i++)
		CHECK(try_report(device, 1UL << 62, i % 2 ? 0 : 1UL << 62) == 0);
	CHECK(clock_gettime(CLOCK_MONOTONIC, &end) == 0);
	printf("%f\n",
	       (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9);
	return 0;
}
