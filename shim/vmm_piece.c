// SPDX-License-Identifier: GPL-2.0-or-later
/* What of the program's own mappings is paged where: admitted, kept, moved, taken apart. */
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "memory.h"
#include "trace.h"
#include "vmm.h"

/* Grains [*from, *to) that it lies in. */
static void grains_of(const struct piece *piece, uint32_t *from, uint32_t *to)
{
	const uint64_t chunk = piece->region->device->chunk;

	*from = (uint32_t)(piece->offset / chunk);
	*to = (uint32_t)((piece->offset + piece->bytes - 1) / chunk) + 1;
}

static struct chunk fresh_chunk(CUdeviceptr address)
{
	return (struct chunk){ .address = address, .slot = NO_SLOT, .ram = NO_RAM };
}

/* How far the allocation reaches; what lies between its pieces is nowhere. In the lock. */
static void reach(struct region *region)
{
	struct device *device = region->device;
	struct allocation *a = region->allocation;
	const struct piece *last = region->count ? region->pieces[region->count - 1] : NULL;
	uint64_t bytes = last ? last->offset + last->bytes : 0;
	uint32_t chunks = (uint32_t)((bytes + device->chunk - 1) / device->chunk);

	for (uint32_t c = a->chunks; c < chunks; c++)
		device->chunks[a->first + c] = fresh_chunk(0);
	alloc_map_extend(&device->map, a, bytes, chunks);
}

/* Enter it in the tables. In the lock. False: no memory. */
static bool enter(struct piece *piece)
{
	struct region *region = piece->region;
	struct device *device = region->device;
	struct allocation *a = region->allocation;
	uint32_t at = region_rank(region, piece->offset), from, to;

	if (region->count == region->room) {
		uint32_t room = region->room ? 2 * region->room : 4;
		struct piece **grown = realloc(region->pieces, room * sizeof(*grown));

		if (!grown)
			return false;
		region->pieces = grown;
		region->room = room;
	}
	if (!alloc_include(a, piece->offset, piece->offset + piece->bytes))
		return false;
	memmove(region->pieces + at + 1, region->pieces + at,
		(region->count - at) * sizeof(*region->pieces));
	region->pieces[at] = piece;
	region->count++;
	reach(region);
	grains_of(piece, &from, &to);
	for (uint32_t g = from; g < to; g++) {
		struct grain *grain = &region->grains[g];

		if (grain->pieces++)
			continue;
		region->grains[grain->grant - 1].live++;
		device->chunks[a->first + g] = fresh_chunk(region->base + g * device->chunk);
		residency_show(device, a->first + g);
	}
	residency_pin(device, a->first + from, to - from, piece->bytes);
	trace_moment(device, "map", piece->bytes, region->base + piece->offset,
		     device->maps ? "mapped" : "paged");
	return true;
}

/* Give back what was admitted at once with this grain and is not in use. In no lock. */
static void settle_grant(struct region *region, uint32_t first)
{
	struct device *device = region->device;
	struct grain *grant = &region->grains[first];
	uint32_t chunks = grant->granted;

	if (!chunks || grant->live)
		return;
	grant->granted = 0;
	for (uint32_t g = first; g < first + chunks; g++)
		region->grains[g].grant = 0;
	pthread_mutex_lock(&device->lock);
	device->committed -= chunks;
	pthread_mutex_unlock(&device->lock);
	client_free(&device->client, region->allocation->first + first);
}

/* Of what ended the daemon may still admit some chunks, but their bytes are nobody's. In no lock.
 */
static void drop_extents(struct region *region, uint32_t from, uint32_t to)
{
	struct device *device = region->device;

	for (uint32_t g = from; g < to; g++) {
		uint32_t index = region->allocation->first + g;
		bool extent;

		pthread_mutex_lock(&device->lock);
		extent = device->chunks[index].extent;
		device->chunks[index].extent = false;
		pthread_mutex_unlock(&device->lock);
		if (extent && region->grains[g].grant)
			residency_drop_extents(device, &index, 1);
	}
}

/* Of what is admitted for grains in this range. In no lock. */
static void settle_grants(struct region *region, uint32_t from, uint32_t to)
{
	for (uint32_t g = from; g < to; g++)
		if (region->grains[g].grant)
			settle_grant(region, region->grains[g].grant - 1);
}

/*
 * Grains [from, to) of a piece by what is admitted at once: those at its ends by themselves if
 * others may come to lie in them, for which they stay when the rest is given back.
 */
static uint32_t grants_of(const struct piece *piece, uint32_t from, uint32_t to,
			  struct held_allocation grants[3])
{
	const struct region *region = piece->region;
	const uint64_t chunk = region->device->chunk, end = piece->offset + piece->bytes;
	bool head = from * chunk < piece->offset;
	bool tail = to * chunk > end && end < region->bytes && to - from > head;
	const uint32_t borders[] = { from, from + head, to - tail, to };
	uint32_t count = 0;

	for (int i = 0; i < 3; i++) {
		uint32_t first = borders[i], chunks = borders[i + 1] - first;

		if (chunks)
			grants[count++] =
				(struct held_allocation){ region->allocation->first + first, chunks,
							  chunks * chunk,
							  region->base + first * chunk };
	}
	return count;
}

/* Have the daemon admit those of its chunks that are not. In device->allocate. */
static CUresult admit(const struct piece *piece)
{
	struct held_allocation grants[3];
	struct region *region = piece->region;
	struct creation *creation = piece->creation;
	struct device *device = region->device;
	uint64_t promised = creation->promised ? creation->bytes : 0;
	CUresult result = CUDA_SUCCESS;
	uint32_t from, to, count;

	grains_of(piece, &from, &to);
	/* Only at its ends can it share chunks with others, whose grants may reach into it. */
	while (from < to && region->grains[from].grant)
		from++;
	while (from < to && region->grains[to - 1].grant)
		to--;
	if (from == to) {
		account_release(device, promised);
	} else {
		count = grants_of(piece, from, to, grants);
		result = account_turn(device, promised, grants, count);
		if (result)
			return result;
		for (uint32_t i = 0; i < count; i++) {
			uint32_t first = grants[i].first - region->allocation->first;

			region->grains[first].granted = grants[i].chunks;
			region->grains[first].live = 0;
			for (uint32_t g = first; g < first + grants[i].chunks; g++)
				region->grains[g].grant = first + 1;
		}
		pthread_mutex_lock(&device->lock);
		device->committed += to - from;
		pthread_mutex_unlock(&device->lock);
		if (device->committed > device->slots_allowed)
			residency_begin_paging(device);
	}
	creation->promised = false;
	return result;
}

/*
 * Graphs name addresses, whatever is mapped there: what of them was fixed is so again. Without
 * memory for the table it is not. In the lock.
 */
static void remember_fixed(struct region *region, uint32_t from, uint32_t to)
{
	const struct chunk *chunks = region->device->chunks + region->allocation->first;

	/* A reset ends the graphs as well. */
	for (uint32_t g = from; g < to && !region->device->stopped; g++) {
		if (!chunks[g].fixed || chunks[g].pinned)
			continue;
		if (!region->fixed)
			region->fixed = calloc(region_chunks(region), 1);
		if (region->fixed)
			region->fixed[g] = true;
	}
}

/* In device->allocate. */
static CUresult fix_again(const struct piece *piece)
{
	struct region *region = piece->region;
	struct device *device = region->device;
	const uint64_t end = piece->offset + piece->bytes;
	CUresult result = CUDA_SUCCESS;
	uint32_t from, to;

	grains_of(piece, &from, &to);
	for (uint32_t g = from; region->fixed && g < to && !result; g++) {
		struct span span = { .allocation = region->allocation,
				     .begin = g * device->chunk,
				     .end = (g + 1) * device->chunk };
		struct hold hold = { .where = HOLD_VRAM };

		if (!region->fixed[g])
			continue;
		span.begin = span.begin < piece->offset ? piece->offset : span.begin;
		span.end = span.end > end ? end : span.end;
		result = residency_hold(device, &span, 1, &hold);
		if (result)
			break;
		result = residency_begin_captured(&hold);
		if (result)
			residency_cancel(device, &hold);
		else
			residency_fix(device, &hold);
	}
	return result;
}

/* In device->allocate. */
static CUresult put(struct region *region, struct creation *creation, uint64_t offset)
{
	struct device *device = creation->device;
	struct piece *piece = malloc(sizeof(*piece));
	uint32_t from, to;
	bool entered;
	CUresult result = piece ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;

	if (!result && !region->allocation)
		result = region_begin(region, device);
	if (result) {
		free(piece);
		return result;
	}
	*piece = (struct piece){ .region = region,
				 .creation = creation,
				 .offset = offset,
				 .bytes = creation->bytes,
				 .mapped = true };
	result = admit(piece);
	if (!result) {
		pthread_mutex_lock(&device->lock);
		entered = enter(piece);
		pthread_mutex_unlock(&device->lock);
		if (!entered) {
			grains_of(piece, &from, &to);
			settle_grants(region, from, to);
			result = CUDA_ERROR_OUT_OF_MEMORY;
		}
	}
	if (result) {
		free(piece);
		if (!region->count)
			region_end(region);
		return result;
	}
	creation->piece = piece;
	result = memory_map_new(device, region->allocation, offset, offset + piece->bytes);
	return result ? result : fix_again(piece);
}

/* Take it out of the tables, and its chunks apart. In device->allocate. */
static void take(struct piece *piece)
{
	struct region *region = piece->region;
	struct device *device = region->device;
	struct allocation *a = region->allocation;
	uint32_t at = region_rank(region, piece->offset) - 1, from, to;

	grains_of(piece, &from, &to);
	pthread_mutex_lock(&device->lock);
	if (piece->mapped)
		alloc_exclude(a, piece->offset, piece->offset + piece->bytes);
	trace_moment(device, "unmap", piece->bytes, region->base + piece->offset, "paged");
	pthread_mutex_unlock(&device->lock);
	/* Others may lie in the chunks at its ends. */
	for (uint32_t g = from; g < to; g++)
		region->grains[g].pieces--;
	while (from < to && region->grains[from].pieces)
		from++;
	while (from < to && region->grains[to - 1].pieces)
		to--;
	residency_wait_unheld(device, a->first + from, to - from);
	pthread_mutex_lock(&device->lock);
	remember_fixed(region, from, to);
	if (from < to)
		memory_end(device, &(struct ending){ a, a->first + from, to - from, false });
	region->count--;
	memmove(region->pieces + at, region->pieces + at + 1,
		(region->count - at) * sizeof(*region->pieces));
	reach(region);
	pthread_mutex_unlock(&device->lock);
	for (uint32_t g = from; g < to; g++)
		region->grains[region->grains[g].grant - 1].live--;
	settle_grants(region, from, to);
	drop_extents(region, from, to);
	free(piece);
	if (!region->count)
		region_end(region);
}

/* ---- moving ---- */

/* All of it, in whatever tier it is; whichever context is current. */
static CUresult copy(const struct device *device, CUdeviceptr to, CUdeviceptr from, uint64_t bytes)
{
	CUcontext current;
	CUresult result = driver.cuCtxGetCurrent(&current);

	if (!result && current != device->context)
		result = driver.cuCtxSetCurrent(device->context);
	if (!result)
		result = hook_cuMemcpyDtoD_v2(0, to, from, bytes);
	if (current != device->context)
		driver.cuCtxSetCurrent(current);
	return result;
}

static bool include(struct piece *piece)
{
	struct device *device = piece->region->device;
	bool done;

	pthread_mutex_lock(&device->lock);
	done = alloc_include(piece->region->allocation, piece->offset,
			     piece->offset + piece->bytes);
	pthread_mutex_unlock(&device->lock);
	piece->mapped = done;
	return done;
}

void piece_keep(struct piece *piece)
{
	struct device *device = piece->region->device;

	pthread_mutex_lock(&device->lock);
	alloc_exclude(piece->region->allocation, piece->offset, piece->offset + piece->bytes);
	pthread_mutex_unlock(&device->lock);
	piece->mapped = false;
	piece->access = CU_MEM_ACCESS_FLAGS_PROT_NONE;
}

/* The creation's bytes are copied from the piece, if there is one, which ends. */
static CUresult move(struct region *region, struct creation *creation, uint64_t offset)
{
	struct piece *old = creation->piece, *fresh;
	struct device *device = creation->device;
	CUresult result;

	pthread_mutex_lock(&device->allocate);
	ordered_reclaim(device, false);
	do {
		creation->piece = NULL;
		result = put(region, creation, offset);
	} while (result == CUDA_ERROR_OUT_OF_MEMORY && !creation->piece &&
		 ordered_reclaim(device, true));
	fresh = creation->piece;
	if (!result && old)
		result = memory_synchronize(device);
	if (!result && old && !include(old))
		result = CUDA_ERROR_OUT_OF_MEMORY;
	if (!result && old) {
		result = copy(device, region->base + offset, old->region->base + old->offset,
			      old->bytes);
		if (!result)
			result = memory_synchronize(device);
		piece_keep(old);
	}
	if (result && fresh)
		take(fresh);
	if (!result && old)
		take(old);
	if (result)
		creation->piece = old;
	pthread_mutex_unlock(&device->allocate);
	return result;
}

CUresult piece_map(struct region *region, struct creation *creation, uint64_t offset)
{
	struct piece *piece = creation->piece;
	CUresult result;

	if (!piece || piece->region != region || piece->offset != offset)
		return move(region, creation, offset);
	if (!include(piece))
		return CUDA_ERROR_OUT_OF_MEMORY;
	result =
		memory_map_new(creation->device, region->allocation, offset, offset + piece->bytes);
	if (result)
		piece_keep(piece);
	return result;
}

CUresult piece_displace(struct piece *piece)
{
	struct creation *creation = piece->creation;
	struct device *device = creation->device;
	uint64_t chunks = (piece->bytes + device->chunk - 1) / device->chunk;
	struct region *region;
	CUdeviceptr base;
	CUresult result = mover_reserve(&device->mover, &base, chunks);

	if (result)
		return result;
	region = region_new((struct region){
		.base = base, .bytes = piece->bytes, .reserved = chunks * device->chunk });
	if (!region) {
		mover_unreserve(&device->mover, base, chunks);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	result = move(region, creation, 0);
	if (result) {
		region_remove(region);
		return result;
	}
	region->over = true;
	piece_keep(creation->piece);
	return CUDA_SUCCESS;
}

void piece_end(struct piece *piece)
{
	struct creation *creation = piece->creation;
	struct device *device = creation->device;

	pthread_mutex_lock(&device->allocate);
	take(piece);
	pthread_mutex_unlock(&device->allocate);
	creation->piece = NULL;
	if (!creation->held)
		creation_free(creation);
}
