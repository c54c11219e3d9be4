// SPDX-License-Identifier: GPL-2.0-or-later
#include "builtin.h"

#include <string.h>
#include <time.h>

#include "kernels/checksum.h"
#include "texture.h"

static void noop(const struct softcuda_launch *launch, void **params)
{
	(void)launch;
	(void)params;
}

/* fill_u32(u32 *dst, u64 n, u32 value) */
static void fill_u32(const struct softcuda_launch *launch, void **params)
{
	uint32_t *dst = *(uint32_t **)params[0];
	uint64_t n = *(uint64_t *)params[1];
	uint32_t value = *(uint32_t *)params[2];

	(void)launch;
	for (uint64_t i = 0; i < n; i++)
		dst[i] = value;
}

/* add_u32(u32 *dst, const u32 *a, const u32 *b, u64 n) */
static void add_u32(const struct softcuda_launch *launch, void **params)
{
	uint32_t *dst = *(uint32_t **)params[0];
	const uint32_t *a = *(const uint32_t **)params[1], *b = *(const uint32_t **)params[2];
	uint64_t n = *(uint64_t *)params[3];

	(void)launch;
	for (uint64_t i = 0; i < n; i++)
		dst[i] = a[i] + b[i];
}

/* checksum(const void *data, u64 bytes, u64 *out): FNV-1a, 64 bits */
static void checksum(const struct softcuda_launch *launch, void **params)
{
	const unsigned char *data = *(const unsigned char **)params[0];
	uint64_t bytes = *(uint64_t *)params[1];
	uint64_t hash = 0xcbf29ce484222325;

	(void)launch;
	for (uint64_t i = 0; i < bytes; i++)
		hash = (hash ^ data[i]) * 0x100000001b3;
	**(uint64_t **)params[2] = hash;
}

/* spin_ns(u64 ns): keeps its stream busy that long */
static void spin_ns(const struct softcuda_launch *launch, void **params)
{
	uint64_t ns = *(uint64_t *)params[0];
	struct timespec start, now;

	(void)launch;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((uint64_t)(now.tv_sec - start.tv_sec) * 1000000000 + (uint64_t)now.tv_nsec -
		       (uint64_t)start.tv_nsec <
	       ns);
}

/* texture_u32(texture, u64 index, u32 *out): what is fetched from linear memory */
static void texture_u32(const struct softcuda_launch *launch, void **params)
{
	const uint32_t *data = texture_memory(*(CUtexObject *)params[0]);

	(void)launch;
	**(uint32_t **)params[2] = data[*(uint64_t *)params[1]];
}

/* tile_u32(tensor map, u64 index, u32 *out): what is loaded through a tensor map of our own making
 */
static void tile_u32(const struct softcuda_launch *launch, void **params)
{
	const uint32_t *data = *(const uint32_t *const *)params[0];

	(void)launch;
	**(uint32_t **)params[2] = data[*(uint64_t *)params[1]];
}

/* point(u64 *table, u64 base, u64 step, u64 count): what comes before a grouped product */
static void point(const struct softcuda_launch *launch, void **params)
{
	uint64_t *table = *(uint64_t **)params[0];
	uint64_t base = *(uint64_t *)params[1], step = *(uint64_t *)params[2];

	(void)launch;
	for (uint64_t i = 0; i < *(uint64_t *)params[3]; i++)
		table[i] = base + i * step;
}

/* follow_u32(u32 *dst, const u32 *const *table, u64 count, u64 n): the sum of what a table points
 * to */
static void follow_u32(const struct softcuda_launch *launch, void **params)
{
	uint32_t *dst = *(uint32_t **)params[0];
	const uint32_t *const *table = *(const uint32_t *const **)params[1];
	uint64_t count = *(uint64_t *)params[2], n = *(uint64_t *)params[3];

	(void)launch;
	for (uint64_t i = 0; i < n; i++) {
		dst[i] = 0;
		for (uint64_t t = 0; t < count; t++)
			dst[i] += table[t][i];
	}
}

/* What shim/kernels/checksum.ptx does; all of it as the first block's. */
static void greenboost_checksum(const struct softcuda_launch *launch, void **params)
{
	const uint64_t *words = *(const uint64_t **)params[0];
	uint64_t pairs = *(uint64_t *)params[1];
	struct checksum *blocks = *(struct checksum **)params[2];

	memset(blocks, 0, launch->grid[0] * sizeof *blocks);
	for (uint64_t i = 0; i < 2 * pairs; i++)
		checksum_add(&blocks[0], words[i], i);
}

const struct builtin builtins[] = {
	{ "noop", noop, 0, { 0 } },
	{ "fill_u32", fill_u32, 3, { 8, 8, 4 } },
	{ "add_u32", add_u32, 4, { 8, 8, 8, 8 } },
	{ "checksum", checksum, 3, { 8, 8, 8 } },
	{ "spin_ns", spin_ns, 1, { 8 } },
	{ "texture_u32", texture_u32, 3, { 8, 8, 8 } },
	{ "tile_u32", tile_u32, 3, { 128, 8, 8 } },
	{ "point", point, 4, { 8, 8, 8, 8 } },
	{ "follow_u32", follow_u32, 4, { 8, 8, 8, 8 } },
	{ CHECKSUM_ENTRY, greenboost_checksum, 3, { 8, 8, 8 } },
	{ 0 },
};
