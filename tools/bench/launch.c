// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Time of one cuLaunchKernel call on the calling thread, in nanoseconds: median
 * of rounds of launches of an empty kernel, the device idle before each round.
 * Prints one number. Loads libcuda.so.1 by name, as programs do.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ROUNDS 401
#define LAUNCHES 200

static void *library;

static void *find(const char *name)
{
	void *function = dlsym(library, name);

	if (!function) {
		fprintf(stderr, "no %s in libcuda.so.1\n", name);
		exit(1);
	}
	return function;
}

#define CALL(name, types, ...)                                            \
	do {                                                              \
		int error = ((int(*) types)find(name))(__VA_ARGS__);      \
		if (error) {                                              \
			fprintf(stderr, "%s returned %d\n", name, error); \
			exit(1);                                          \
		}                                                         \
	} while (0)

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return a < b ? -1 : a > b;
}

int main(int argc, char **argv)
{
	const char *image = argc > 1 ? argv[1] : "softcuda";
	int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
		      void *, void **, void **);
	int (*synchronize)(void);
	void *context, *module, *function;
	unsigned long long memory;
	static double rounds[ROUNDS];

	library = dlopen("libcuda.so.1", RTLD_NOW);
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	launch = find("cuLaunchKernel");
	synchronize = find("cuCtxSynchronize");
	CALL("cuInit", (unsigned), 0);
	CALL("cuDevicePrimaryCtxRetain", (void **, int), &context, 0);
	CALL("cuCtxSetCurrent", (void *), context);
	CALL("cuMemAlloc_v2", (unsigned long long *, size_t), &memory, (size_t)32 << 20);
	CALL("cuModuleLoadData", (void **, const void *), &module, image);
	CALL("cuModuleGetFunction", (void **, void *, const char *), &function, module, "noop");
	for (int r = 0; r < ROUNDS; r++) {
		double start = now();

		for (int i = 0; i < LAUNCHES; i++)
			launch(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
		rounds[r] = (now() - start) / LAUNCHES;
		synchronize();
	}
	qsort(rounds, ROUNDS, sizeof(*rounds), by_value);
	printf("%.1f\n", rounds[ROUNDS / 2]);
	return 0;
}
