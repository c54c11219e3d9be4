// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "far.h"

#include "device.h"

struct owner far_owner(CUdeviceptr address)
{
	struct device *device = address ? device_of(address) : NULL;
	struct owner owner = { .device = -1 };
	int type, ordinal;

	if (device)
		return (struct owner){ device->ordinal, device->context };
	if (!address ||
	    driver.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address) ||
	    type != CU_MEMORYTYPE_DEVICE ||
	    driver.cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address))
		return owner;
	owner.device = ordinal;
	device = device_ready(ordinal);
	if (device)
		owner.context = device->context;
	else if (driver.cuPointerGetAttribute(&owner.context, CU_POINTER_ATTRIBUTE_CONTEXT,
					      address))
		owner.context = NULL;
	return owner;
}

/* Streams that every context has are the current one's. */
static CUcontext context_of(CUstream stream)
{
	CUcontext context = NULL;

	if (!stream || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD ||
	    driver.cuStreamGetCtx(stream, &context) || !context)
		driver.cuCtxGetCurrent(&context);
	return context;
}

CUdevice far_device(CUstream stream)
{
	CUcontext current, context = context_of(stream);
	CUdevice device = -1;

	if (!context || driver.cuCtxGetCurrent(&current))
		return -1;
	if (context != current && driver.cuCtxSetCurrent(context))
		return -1;
	if (driver.cuCtxGetDevice(&device))
		device = -1;
	if (context != current)
		driver.cuCtxSetCurrent(current);
	return device;
}

bool far_apart(CUdeviceptr dst, CUdeviceptr src, CUdevice here, struct owner *to,
	       struct owner *from)
{
	*to = far_owner(dst);
	*from = far_owner(src);
	if (!to->context || !from->context)
		return false; /* the host's, or the driver's business */
	if (to->device != from->device)
		return true;
	return here >= 0 && here != to->device;
}

CUresult far_away(struct detour *detour, struct device *owner, CUstream stream,
		  unsigned int variant)
{
	struct ticket *before;
	CUresult result;

	*detour = (struct detour){
		.owner = owner, .origin = context_of(stream), .stream = stream, .variant = variant
	};
	result = driver.cuCtxGetCurrent(&detour->back);
	if (!result)
		result = driver.cuCtxSetCurrent(detour->origin);
	if (result)
		return result;
	before = ticket_record(stream, variant);
	result = before ? driver.cuCtxSetCurrent(owner->context) : CUDA_ERROR_INVALID_VALUE;
	if (!result)
		result = driver.cuStreamCreate(&detour->guest, CU_STREAM_NON_BLOCKING);
	if (!result)
		result = ticket_wait_on(before, detour->guest, 0);
	ticket_put(before);
	if (result) {
		if (detour->guest)
			driver.cuStreamDestroy[1](detour->guest);
		driver.cuCtxSetCurrent(detour->back);
	}
	return result;
}

CUresult far_back(const struct detour *detour, CUresult result, bool waits)
{
	struct ticket *after = ticket_record(detour->guest, 0);
	CUresult waited = CUDA_SUCCESS;

	/* Also if only a part was given to it. */
	if (!after)
		waited = driver.cuStreamSynchronize[0](detour->guest);
	tickets_forget_stream(stream_key(detour->guest, 0));
	driver.cuStreamDestroy[1](detour->guest); /* what it has is done all the same */
	driver.cuCtxSetCurrent(detour->origin);
	if (after)
		waited = waits ? ticket_wait(after)
			       : ticket_wait_on(after, detour->stream, detour->variant);
	ticket_put(after);
	driver.cuCtxSetCurrent(detour->back);
	return result ? result : waited;
}
