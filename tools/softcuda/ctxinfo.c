// SPDX-License-Identifier: GPL-2.0-or-later
/* What can be asked and set of a context. */
#include "api.gen.h"
#include "context.h"
#include "stream.h"

#define API_VERSION 3020

CUresult do_cuCtxGetDevice(CUdevice *device)
{
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	*device = context_current()->device;
	return CUDA_SUCCESS;
}

/* The functions that name a context take NULL for the current one. */
static CUresult named(CUcontext *ctx)
{
	if (!*ctx)
		*ctx = context_current();
	return context_check(*ctx);
}

CUresult do_cuCtxGetDevice_v2(CUdevice *device, CUcontext ctx)
{
	CUresult error = named(&ctx);

	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	if (!error)
		*device = ctx->device;
	return error;
}

CUresult do_cuCtxGetFlags(unsigned int *flags)
{
	if (!flags)
		return CUDA_ERROR_INVALID_VALUE;
	*flags = context_current()->flags;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxGetId(CUcontext ctx, unsigned long long *id)
{
	CUresult error = named(&ctx);

	if (!id)
		return CUDA_ERROR_INVALID_VALUE;
	if (!error)
		*id = ctx->id;
	return error;
}

CUresult do_cuCtxGetApiVersion(CUcontext ctx, unsigned int *version)
{
	CUresult error = named(&ctx);

	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	if (!error)
		*version = API_VERSION;
	return error;
}

CUresult do_cuCtxGetLimit(size_t *value, int limit)
{
	if (!value)
		return CUDA_ERROR_INVALID_VALUE;
	if (limit < 0 || limit >= CONTEXT_LIMITS)
		return CUDA_ERROR_INVALID_VALUE;
	*value = context_current()->limits[limit];
	return CUDA_SUCCESS;
}

CUresult do_cuCtxSetLimit(int limit, size_t value)
{
	if (limit < 0 || limit >= CONTEXT_LIMITS)
		return CUDA_ERROR_INVALID_VALUE;
	context_current()->limits[limit] = value;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxGetCacheConfig(int *config)
{
	if (!config)
		return CUDA_ERROR_INVALID_VALUE;
	*config = context_current()->cache_config;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxSetCacheConfig(int config)
{
	if (config < 0 || config > 3)
		return CUDA_ERROR_INVALID_VALUE;
	context_current()->cache_config = config;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	if (least)
		*least = 0;
	if (greatest)
		*greatest = GREATEST_PRIORITY;
	return CUDA_SUCCESS;
}

/* Every device sees all memory in any case; what is kept is whether the program asked first. */
static CUresult change_peer(CUcontext peer, bool enable)
{
	CUcontext context = context_current();
	CUresult error = context_check(peer);
	unsigned int bit, before;

	if (error)
		return error;
	if (peer->device == context->device)
		return CUDA_ERROR_INVALID_DEVICE;
	bit = 1u << peer->device;
	if (enable) {
		before = atomic_fetch_or(&context->peers, bit);
		return before & bit ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : CUDA_SUCCESS;
	}
	before = atomic_fetch_and(&context->peers, ~bit);
	return before & bit ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}

CUresult do_cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags)
{
	return flags ? CUDA_ERROR_INVALID_VALUE : change_peer(peer, true);
}

CUresult do_cuCtxDisablePeerAccess(CUcontext peer)
{
	return change_peer(peer, false);
}
