/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Chunks that launches name by a guess alone. How far an object in a pool reaches is not known, so
 * what lies behind its probable end has to be there as well. Brought into VRAM for that, it may be
 * what is used next, as with weights laid out in order, or leave again and again without anybody
 * having named it for certain. Then it is better off in RAM, in place, where it costs the bus
 * nothing unless it is read.
 */
#ifndef GREENBOOST_GUESS_H
#define GREENBOOST_GUESS_H

#include <stdbool.h>
#include <stdint.h>

struct guess {
	bool open; /* it is where it is by a guess that nothing has confirmed */
	uint8_t wrong; /* how often in a row, so to say */
	uint32_t since; /* chunks that had left VRAM by then */
};

/* A chunk comes to VRAM, or to be used in place, by a guess alone; so many have left VRAM so far.
 */
void guess_made(struct guess *guess, uint64_t left);

/* It is named for certain: of use was a guess that would have kept it in these slots of VRAM. */
void guess_confirmed(struct guess *guess, uint64_t left, uint32_t slots);

/* It leaves VRAM. */
void guess_over(struct guess *guess);

/* Is the next one likely to be in vain? */
bool guess_is_vain(const struct guess *guess);

#endif
