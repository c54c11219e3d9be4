// SPDX-License-Identifier: GPL-2.0-or-later
#include "pins.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* One rule; where it ends, or NULL: it is none. */
static const char *parse_rule(struct pin *pin, const char *text)
{
	const char *between;
	char *end;

	*pin = (struct pin){ .by_address = strncmp(text, "size=", 5) != 0 };
	between = pin->by_address ? "-" : "..";
	text += pin->by_address ? 0 : 5;
	pin->low = strtoull(text, &end, 0);
	if (end == text || strncmp(end, between, strlen(between)))
		return NULL;
	text = end + strlen(between);
	pin->high = strtoull(text, &end, 0);
	return end == text || (*end && *end != ',') ? NULL : end;
}

bool pins_parse(struct pins *pins, const char *text)
{
	pins->count = 0;
	while (text && *text) {
		if (pins->count == MAX_PINS)
			return false;
		text = parse_rule(&pins->rules[pins->count], text);
		if (!text)
			return false;
		pins->count++;
		text += *text == ',';
	}
	return true;
}

struct pin *pins_find(struct pins *pins, uint64_t bytes, uint64_t address, uint64_t length)
{
	for (uint32_t i = 0; i < pins->count; i++) {
		struct pin *pin = &pins->rules[i];

		if (pin->by_address ? address < pin->high && address + length > pin->low
				    : bytes >= pin->low && bytes <= pin->high)
			return pin;
	}
	return NULL;
}
