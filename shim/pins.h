/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is to stay in VRAM: GREENBOOST_PIN, rules that are separated by commas,
 * size=LOW..HIGH (bytes of an allocation, both included) or 0xLOW-0xHIGH (addresses,
 * the last not included). tierd/pins.py makes them of what people write. No CUDA.
 */
#ifndef GREENBOOST_PINS_H
#define GREENBOOST_PINS_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_PINS 32

struct pin {
	bool by_address;
	bool refused; /* it was said that there is no room for all of it */
	uint64_t low, high;
};

struct pins {
	struct pin rules[MAX_PINS];
	uint32_t count;
};

/* False: the text is no list of rules; those before what is wrong hold. */
bool pins_parse(struct pins *pins, const char *text);

/* The first rule for [address, address + length) of an allocation of so many bytes; NULL: none. */
struct pin *pins_find(struct pins *pins, uint64_t bytes, uint64_t address, uint64_t length);

#endif
