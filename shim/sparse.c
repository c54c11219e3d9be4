// SPDX-License-Identifier: GPL-2.0-or-later
#include "sparse.h"

/* Launches that must have been quick, or not, before it is believed. */
#define ENOUGH 2

/* Of the time that reading all of it would take, what is still quick (to divide by). */
#define QUICK_SHARE 2

/*
 * In RAM it is read over the bus, which on no GPU is slower than this share of its memory's
 * speed; and where that takes more than a quarter of what bringing all of it would, it is
 * not little.
 */
#define BUS_SHARE 64
#define IN_PLACE_SHARE 4

static uint32_t place(const struct reading *reading)
{
	return (reading->tag ^ reading->first * 0x9e3779b1u) % SPARSE_VERDICTS;
}

static bool same(const struct reading *a, const struct reading *b)
{
	return a->tag == b->tag && a->first == b->first && a->chunks == b->chunks;
}

static bool overlap(const struct reading *reading, uint32_t first, uint32_t chunks)
{
	return reading->first < first + chunks && first < reading->first + reading->chunks;
}

bool sparse_is(const struct sparse *sparse, const struct reading *reading)
{
	const struct verdict *v = &sparse->verdicts[place(reading)];

	return same(&v->reading, reading) && !v->wanted && v->little >= ENOUGH;
}

bool sparse_likely(const struct sparse *sparse, const struct reading *reading, uint32_t last)
{
	const struct reading other = { last, reading->first, reading->chunks };

	return !same(&sparse->verdicts[place(reading)].reading, reading) &&
	       sparse_is(sparse, &other);
}

bool sparse_doubtful(const struct sparse *sparse, const struct reading *reading)
{
	const struct verdict *v = &sparse->verdicts[place(reading)];

	if (sparse->speed <= 0)
		return false;
	return !same(&v->reading, reading) || (!v->wanted && v->much < ENOUGH);
}

bool sparse_sample(struct sparse *sparse, const struct sample *sample)
{
	if (sparse->sampled == SPARSE_SAMPLES)
		return false;
	sparse->samples[sparse->sampled++] = *sample;
	return true;
}

void sparse_took(struct sparse *sparse, const struct sample *sample, double seconds)
{
	struct verdict *v = &sparse->verdicts[place(&sample->reading)];
	double chunks = sample->reading.chunks;
	bool quick = sample->in_place
			     ? seconds * sparse->speed / BUS_SHARE * IN_PLACE_SHARE < chunks
			     : seconds * sparse->speed + sparse->cache < chunks / QUICK_SHARE;

	quick = quick && sample->alone;
	if (!same(&v->reading, &sample->reading))
		*v = (struct verdict){ .reading = sample->reading };
	/* In place it has cost little, whatever it was. */
	if (quick && sample->in_place)
		v->little = ENOUGH;
	v->little = quick ? v->little + (v->little < ENOUGH) : 0;
	v->much = quick ? 0 : v->much + (v->much < ENOUGH);
}

void sparse_wanted(struct sparse *sparse, uint32_t chunk)
{
	for (uint32_t i = 0; i < SPARSE_VERDICTS; i++)
		if (overlap(&sparse->verdicts[i].reading, chunk, 1))
			sparse->verdicts[i].wanted = true;
}

void sparse_forget(struct sparse *sparse, uint32_t first, uint32_t chunks)
{
	for (uint32_t i = 0; i < SPARSE_VERDICTS; i++)
		if (overlap(&sparse->verdicts[i].reading, first, chunks))
			sparse->verdicts[i] = (struct verdict){ .little = 0 };
}
