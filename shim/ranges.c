// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "ranges.h"

#include <stdlib.h>

#include "device.h"
#include "log.h"

#define FEW 8

/* Spans of the ranges that are paged; all must be one device's. */
static CUresult find_spans(const struct extent *ranges, uint32_t count, struct device **device,
			   struct span *spans, uint32_t *n)
{
	for (uint32_t i = 0; i < count; i++) {
		struct device *owner =
			ranges[i].begin < ranges[i].end ? device_of(ranges[i].begin) : NULL;
		struct allocation *a;

		if (!owner)
			continue;
		if (*device && *device != owner) {
			/* No program was seen to. */
			log_warn("one call cannot name memory of two devices that both page it "
				 "(cuMemcpy3DBatchAsync, and kernels)");
			return CUDA_ERROR_NOT_SUPPORTED;
		}
		pthread_mutex_lock(&owner->lock);
		a = alloc_map_find(&owner->map, ranges[i].begin);
		if (a && a->chunks &&
		    alloc_holds(a, ranges[i].begin - a->base, ranges[i].end - ranges[i].begin)) {
			*device = owner;
			spans[(*n)++] = (struct span){ .allocation = a,
						       .begin = ranges[i].begin - a->base,
						       .end = ranges[i].end - a->base,
						       .named = ranges[i].begin - a->base };
		}
		pthread_mutex_unlock(&owner->lock);
	}
	return CUDA_SUCCESS;
}

/* No copy or memset may run from VRAM into RAM or, for all we know, from one registration into the
 * next. */
static bool crosses(const struct device *device, const struct span *span)
{
	return device->maps && span->begin / device->chunk != (span->end - 1) / device->chunk;
}

static CUresult begin(struct launch *held, const struct extent *ranges, uint32_t count,
		      CUstream stream, unsigned int variant, bool copies)
{
	struct span few[FEW], *spans = few;
	struct device *device = NULL;
	CUresult result;
	uint32_t n = 0;

	launch_none(held);
	held->what = (struct launched){ 0 };
	if (count > FEW)
		spans = malloc(count * sizeof(*spans));
	if (!spans)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = find_spans(ranges, count, &device, spans, &n);
	for (uint32_t i = 0; copies && !result && i < n; i++)
		if (crosses(device, &spans[i]))
			result = CUDA_ERROR_OUT_OF_MEMORY;
	if (!result && n)
		result = launch_begin(held, device, spans, n, stream, variant);
	if (spans != few)
		free(spans);
	return result;
}

CUresult ranges_begin(struct launch *held, const struct extent *ranges, uint32_t count,
		      CUstream stream, unsigned int variant)
{
	return begin(held, ranges, count, stream, variant, false);
}

CUresult ranges_begin_copy(struct launch *held, const struct extent *ranges, uint32_t count,
			   CUstream stream, unsigned int variant)
{
	return begin(held, ranges, count, stream, variant, true);
}

CUresult ranges_fix(const struct extent *ranges, uint32_t count, const char *what)
{
	struct launch held = { .captured = true };
	CUresult result = ranges_begin(&held, ranges, count, NULL, 0);
	uint64_t bytes = 0;

	if (!result) {
		launch_end(&held);
		return result;
	}
	for (uint32_t i = 0; i < count; i++)
		bytes += ranges[i].end - ranges[i].begin;
	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		log_warn("%s names %llu MiB, which must stay in VRAM and do not fit beside what "
			 "has to stay already; give it more VRAM (--vram)",
			 what, (unsigned long long)(bytes >> 20));
	return result;
}
