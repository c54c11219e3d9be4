// SPDX-License-Identifier: GPL-2.0-or-later
/* What an address is: the questions programs ask about pointers. */
#include <string.h>

#include "api.gen.h"
#include "context.h"
#include "space.h"

#define KNOWN_ATTRIBUTES CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE

/* A value of an attribute: its bytes, and how many of them. */
struct answer {
	uint64_t value;
	size_t bytes;
};

static bool is_device(const struct span *span)
{
	return span->kind != SPAN_HOST;
}

/* False: the question makes no sense for this memory. */
static bool ask(const struct span *span, int attribute, CUdeviceptr ptr, struct answer *answer)
{
	answer->bytes = sizeof(uint64_t);
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		answer->value = (uintptr_t)span->context;
		return true;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		answer->value = is_device(span) ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
		answer->bytes = sizeof(int);
		return true;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		answer->value = ptr;
		return true;
	case CU_POINTER_ATTRIBUTE_HOST_POINTER:
		answer->value = ptr;
		return !is_device(span) || span->managed;
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:
		answer->value = span->id;
		return true;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		answer->value = (uint64_t)span->device;
		answer->bytes = sizeof(int);
		return true;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		answer->value = span->at.start;
		return true;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		answer->value = span->at.end - span->at.start;
		return true;
	case CU_POINTER_ATTRIBUTE_MAPPED:
		answer->value = 1;
		answer->bytes = sizeof(bool);
		return true;
	case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
		answer->value = (uint64_t)span_access(span);
		answer->bytes = sizeof(int);
		return true;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
		answer->value = span->managed;
		answer->bytes = sizeof(bool);
		return true;
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
		answer->value = 0;
		answer->bytes = sizeof(bool);
		return true;
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
	case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
		answer->value = 0;
		return true;
	default:
		return false;
	}
}

/* What is said of an address that the devices do not know. */
static struct answer unknown(int attribute)
{
	struct answer answer = { 0, sizeof(uint64_t) };

	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		answer.value =
			(uint64_t)-2; /* as the documentation of cuPointerGetAttributes has it */
		answer.bytes = sizeof(int);
		break;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
	case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
		answer.bytes = sizeof(int);
		break;
	case CU_POINTER_ATTRIBUTE_MAPPED:
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
		answer.bytes = sizeof(bool);
		break;
	default:
		break;
	}
	return answer;
}

CUresult do_cuPointerGetAttribute(void *data, int attribute, CUdeviceptr ptr)
{
	CUresult error = CUDA_ERROR_INVALID_VALUE;
	struct answer answer;
	struct span *span;

	if (!data)
		return error;
	space_read_lock();
	span = space_at(ptr);
	if (span && ask(span, attribute, ptr, &answer)) {
		memcpy(data, &answer.value, answer.bytes);
		error = CUDA_SUCCESS;
	}
	space_unlock();
	return error;
}

/* Unlike the question about one attribute, this one never fails for what an address is. */
CUresult do_cuPointerGetAttributes(unsigned int count, int *attributes, void **data,
				   CUdeviceptr ptr)
{
	struct span *span;

	if (!count || !attributes || !data)
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned int i = 0; i < count; i++)
		if (!data[i] || attributes[i] < 1 || attributes[i] > KNOWN_ATTRIBUTES)
			return CUDA_ERROR_INVALID_VALUE;
	space_read_lock();
	span = space_at(ptr);
	for (unsigned int i = 0; i < count; i++) {
		struct answer answer;

		if (!span || !ask(span, attributes[i], ptr, &answer))
			answer = unknown(attributes[i]);
		memcpy(data[i], &answer.value, answer.bytes);
	}
	space_unlock();
	return CUDA_SUCCESS;
}

/* Copies are in order with the host in any case. */
CUresult do_cuPointerSetAttribute(const void *value, int attribute, CUdeviceptr ptr)
{
	bool known;

	if (!value || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS)
		return CUDA_ERROR_INVALID_VALUE;
	space_read_lock();
	known = space_at(ptr);
	space_unlock();
	return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr dptr)
{
	CUresult error = CUDA_ERROR_NOT_FOUND;
	struct span *span;

	space_read_lock();
	span = space_at(dptr);
	if (span) {
		if (base)
			*base = span->at.start;
		if (size)
			*size = span->at.end - span->at.start;
		error = CUDA_SUCCESS;
	}
	space_unlock();
	return error;
}
