// SPDX-License-Identifier: GPL-2.0-or-later
#include "settings.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "vram.h"

struct settings settings;

static bool parse_size(const char *text, size_t *bytes)
{
	static const struct {
		const char *name;
		size_t bytes;
	} units[] = {
		{ "", 1 },
		{ "B", 1 },
		{ "KiB", 1ull << 10 },
		{ "MiB", 1ull << 20 },
		{ "GiB", 1ull << 30 },
		{ "TiB", 1ull << 40 },
	};
	unsigned long long number;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno)
		return false;
	for (size_t i = 0; i < sizeof units / sizeof *units; i++)
		if (!strcasecmp(end, units[i].name))
			return !__builtin_mul_overflow(number, units[i].bytes, bytes);
	return false;
}

static bool load_size(const char *name, size_t least, size_t otherwise, size_t *bytes)
{
	const char *text = getenv(name);

	*bytes = otherwise;
	if (!text || !*text)
		return true;
	if (parse_size(text, bytes) && *bytes >= least)
		return true;
	fprintf(stderr, "softcuda: %s=%s: write a size of at least %zu bytes, such as 64MiB\n",
		name, text, least);
	return false;
}

static bool load_number(const char *name, long least, long most, long otherwise, long *value)
{
	const char *text = getenv(name);
	char *end;

	*value = otherwise;
	if (!text || !*text)
		return true;
	errno = 0;
	*value = strtol(text, &end, 10);
	if (!errno && !*end && *value >= least && *value <= most)
		return true;
	fprintf(stderr, "softcuda: %s=%s: write a number from %ld to %ld\n", name, text, least,
		most);
	return false;
}

bool settings_load(void)
{
	long devices, poison, spoil, late, late_ms, khz;

	if (!load_size("SOFTCUDA_VRAM", VRAM_CREATE_UNIT, 1ull << 30, &settings.vram_bytes) ||
	    !load_number("SOFTCUDA_DEVICES", 0, MAX_DEVICES, 1, &devices) ||
	    !load_number("SOFTCUDA_POISON", 0, 1, 0, &poison) ||
	    !load_number("SOFTCUDA_SPOIL", 0, 1, 0, &spoil) ||
	    !load_number("SOFTCUDA_LATE", 0, 1, 0, &late) ||
	    !load_number("SOFTCUDA_LATE_MS", 1, 3600000, 500, &late_ms) ||
	    !load_number("SOFTCUDA_MEMORY_KHZ", 1, 10000000, 1000000, &khz))
		return false;
	settings.devices = (int)devices;
	settings.poison = poison;
	settings.spoil = spoil;
	settings.late = late;
	settings.memory_khz = (int)khz;
	settings.late_limit = (uint64_t)late_ms * 1000000;
	return true;
}
