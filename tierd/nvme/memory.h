/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is done to memory without a ring, most of it to whole chunks at the speed
 * of memory. cffi lets go of the interpreter's lock around every call. See
 * engine.h for the two marks.
 */
#ifndef GREENBOOST_NVME_MEMORY_H
#define GREENBOOST_NVME_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/*
 * Whether one 64-bit word, in the machine's byte order, repeats through all of
 * the memory; length is a multiple of 8 and not 0. Ends at the first difference.
 */
int gb_repeated_word(const void *memory, size_t length, uint64_t *word);
void gb_fill(void *memory, size_t length, uint64_t word);

/* Keeps the pages from being swapped out until they are unmapped; 0 or -errno. */
int gb_lock(void *memory, size_t length);
/* cffi: end */

#endif
