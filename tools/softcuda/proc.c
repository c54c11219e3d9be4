// SPDX-License-Identifier: GPL-2.0-or-later
#include "proc.h"

#include <string.h>

#include "api.gen.h"

/* Index of the first entry for a symbol, or of the one before which it would be. */
static unsigned int first_of(const char *symbol)
{
	unsigned int low = 0, high = proc_count;

	while (low < high) {
		unsigned int middle = low + (high - low) / 2;

		if (strcmp(proc_table[middle].symbol, symbol) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * The newest function of that name in a version. A per-thread variant, where
 * one is wanted and exists, goes before any that is none.
 */
static const struct proc *find(const char *symbol, int version, bool per_thread, bool *known)
{
	const struct proc *best = NULL;

	*known = false;
	for (unsigned int i = first_of(symbol);
	     i < proc_count && !strcmp(proc_table[i].symbol, symbol); i++) {
		const struct proc *proc = &proc_table[i];

		*known = true;
		if (proc->version > version || (proc->per_thread && !per_thread))
			continue;
		if (!best || proc->per_thread >= best->per_thread)
			best = proc;
	}
	return best;
}

static CUresult look_up(const char *symbol, void **pfn, int version, uint64_t flags, int *status)
{
	const struct proc *proc;
	int driver_version;
	bool known;

	do_cuDriverGetVersion(&driver_version);
	if (!symbol || !pfn || version > driver_version ||
	    flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)
		return CUDA_ERROR_INVALID_VALUE;
	proc = find(symbol, version, flags == CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM,
		    &known);
	*pfn = proc ? (void *)proc->function : NULL;
	if (proc)
		*status = CU_GET_PROC_ADDRESS_SUCCESS;
	else
		*status = known ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
				: CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return CUDA_SUCCESS;
}

/* Without a place to put the status, a missing function is an error; with one, it is an answer. */
CUresult do_cuGetProcAddress_v2(const char *symbol, void **pfn, int version, uint64_t flags,
				CUdriverProcAddressQueryResult *status)
{
	int found;
	CUresult error = look_up(symbol, pfn, version, flags, &found);

	if (error)
		return error;
	if (status)
		*status = found;
	return status || found == CU_GET_PROC_ADDRESS_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult do_cuGetProcAddress(const char *symbol, void **pfn, int version, uint64_t flags)
{
	return do_cuGetProcAddress_v2(symbol, pfn, version, flags, NULL);
}
