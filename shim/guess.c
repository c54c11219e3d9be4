// SPDX-License-Identifier: GPL-2.0-or-later
#include "guess.h"

/* From so many on guesses are taken for wrong; and so many are remembered, so that one right one
 * among wrong ones changes little. */
#define WRONG 2
#define WRONG_MOST 3

void guess_made(struct guess *guess, uint64_t left)
{
	guess->open = true;
	guess->since = (uint32_t)left;
}

void guess_confirmed(struct guess *guess, uint64_t left, uint32_t slots)
{
	if (guess->open && guess->wrong && (uint32_t)left - guess->since <= slots)
		guess->wrong--;
	guess->open = false;
}

void guess_over(struct guess *guess)
{
	if (guess->open && guess->wrong < WRONG_MOST)
		guess->wrong++;
	guess->open = false;
}

bool guess_is_vain(const struct guess *guess)
{
	return guess->wrong >= WRONG;
}
