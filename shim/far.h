/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copies and memsets that name paged memory of another device than their stream's.
 *
 * What cuMemAlloc returns may be named in every context. What is paged is mapped, and a mapping
 * may be named only in contexts of devices that were given access to it, which others' need not be
 * able to have; else the driver answers CUDA_ERROR_INVALID_VALUE (580.159.04, two H100). A peer
 * copy names each end in a context of its own, so those from one device's memory to another's are
 * made as such; what else comes from a foreign context takes a way round by a stream of the
 * owner's.
 */
#ifndef GREENBOOST_FAR_H
#define GREENBOOST_FAR_H

#include "residency.h"

/* Whose memory it is; device -1: the host's. */
struct owner {
	CUdevice device;
	CUcontext context; /* one of the device's; NULL: none is known */
};

struct owner far_owner(CUdeviceptr address);

/* The device that work given to the stream runs on; -1: it is not known. */
CUdevice far_device(CUstream stream);

/* Must a copy from one address to the other, of which one is paged, be a peer copy? here: the
 * device that it runs on. */
bool far_apart(CUdeviceptr dst, CUdeviceptr src, CUdevice here, struct owner *to,
	       struct owner *from);

/* The way round. */
struct detour {
	struct device *owner;
	CUcontext back; /* the thread's current one */
	CUcontext origin; /* the stream's */
	CUstream stream;
	unsigned int variant;
	CUstream guest; /* in the owner's context. Of its own: two that shared one could wait for
			   each other */
};

/*
 * What follows is given to detour->guest, in the owner's context, behind what the stream has by
 * now; until far_back(), behind which the stream goes on. On error nothing has begun, and the
 * driver has the word.
 */
CUresult far_away(struct detour *detour, struct device *owner, CUstream stream,
		  unsigned int variant);

/* result: of what was given to the guest. waits: the host waits for it, too. */
CUresult far_back(const struct detour *detour, CUresult result, bool waits);

#endif
