/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the environment asks of the device; read once, by cuInit. */
#ifndef SOFTCUDA_SETTINGS_H
#define SOFTCUDA_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_DEVICES 16

struct settings {
	size_t vram_bytes; /* SOFTCUDA_VRAM, of each device */
	int devices; /* SOFTCUDA_DEVICES */
	bool poison; /* SOFTCUDA_POISON */
	bool spoil; /* SOFTCUDA_SPOIL */
	bool late; /* SOFTCUDA_LATE */
	int memory_khz; /* SOFTCUDA_MEMORY_KHZ, the memory clock that it says it has */
	uint64_t late_limit; /* SOFTCUDA_LATE_MS, in ns */
};

extern struct settings settings;

/* False, and a line on stderr, when a variable cannot be understood. */
bool settings_load(void);

#endif
