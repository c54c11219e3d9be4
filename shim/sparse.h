/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Launches that read little of what they name: a few rows of an embedding. Bringing all of it to
 * VRAM for them is a waste; they are as well off with it in RAM (in_place.h).
 *
 * What a kernel reads cannot be seen, but how long it takes can. One that ends sooner than the
 * device could have read the object has not read it. What others name as well is left to them.
 * In the device's lock, all of it.
 */
#ifndef GREENBOOST_SPARSE_H
#define GREENBOOST_SPARSE_H

#include <stdbool.h>
#include <stdint.h>

#include "timing.h"

#define SPARSE_VERDICTS 1024
#define SPARSE_SAMPLES 16

/* Of one kind of launches and one object, by its chunks. */
struct reading {
	uint32_t tag; /* of the hold */
	uint32_t first, chunks; /* none: there is no object */
};

struct verdict {
	struct reading reading;
	uint8_t little,
		much; /* so many launches in a row read little of what only they name; did not
		       */
	bool wanted; /* others want it in VRAM, or its RAM: it is never used there for this */
};

struct sample {
	struct reading reading;
	struct span_of_time time;
	bool in_place; /* some of it was in RAM then */
	bool alone; /* since the last such launch nobody has named it who may read more of it */
};

struct sparse {
	double speed; /* that the device reads its memory with at most, chunks a second; 0: nothing
			 is looked for */
	double cache; /* chunks that it may read faster than that */
	struct verdict verdicts[SPARSE_VERDICTS];
	struct sample samples[SPARSE_SAMPLES]; /* whose launches may not be over */
	uint32_t sampled;
};

/* Does such a launch read little of it? */
bool sparse_is(const struct sparse *sparse, const struct reading *reading);

/*
 * Is it not known of this kind of launches, but of the last that named the same that it reads
 * little? Two kernels look up many rows and few.
 */
bool sparse_likely(const struct sparse *sparse, const struct reading *reading, uint32_t last);

/* Should such a launch be timed to find out, or to see whether it still does? */
bool sparse_doubtful(const struct sparse *sparse, const struct reading *reading);

/* One has been given to the device. False: there is no place, and the caller keeps the times. */
bool sparse_sample(struct sparse *sparse, const struct sample *sample);

/* It took so long. */
void sparse_took(struct sparse *sparse, const struct sample *sample, double seconds);

/* A launch that reads it, or for all one knows does, wants the chunk in VRAM; or others its RAM. */
void sparse_wanted(struct sparse *sparse, uint32_t chunk);

/* The chunks' memory was freed. */
void sparse_forget(struct sparse *sparse, uint32_t first, uint32_t chunks);

#endif
