// SPDX-License-Identifier: GPL-2.0-or-later
#include "checksum.h"

#include "log.h"

/* The kernel as text, which the driver compiles for its device. */
__asm__(".pushsection .rodata\n"
	"checksum_ptx: .incbin \"kernels/checksum.ptx\"\n"
	".byte 0\n"
	".popsection");
extern const char checksum_ptx[] __attribute__((visibility("hidden")));

void summer_init(struct summer *summer)
{
	CUresult result;
	CUmodule module;
	void *blocks = NULL;
	int least = 0, greatest = 0;

	if (summer->loaded)
		return;
	summer->loaded = true;
	result = driver.cuModuleLoadData(&module, checksum_ptx);
	if (!result)
		result = driver.cuModuleGetFunction(&summer->kernel, module, CHECKSUM_ENTRY);
	if (!result)
		result = driver.cuMemHostAlloc(&blocks, CHECKSUM_BLOCKS * sizeof(*summer->blocks),
					       0);
	/* Ahead of the application's: it is short, and what is to leave waits for it. */
	if (!result)
		result = driver.cuCtxGetStreamPriorityRange(&least, &greatest);
	if (!result)
		result = driver.cuStreamCreateWithPriority(&summer->stream, CU_STREAM_NON_BLOCKING,
							   greatest);
	if (result) {
		log_warn("no checksums on this device (%s): whatever leaves VRAM is copied",
			 driver_error(result));
		summer->kernel = NULL;
	}
	summer->blocks = blocks;
}

CUresult summer_take(struct summer *summer, CUdeviceptr data, size_t bytes, struct checksum *sum)
{
	uint64_t pairs = bytes / 16;
	void *params[] = { &data, &pairs, &summer->blocks };
	CUresult result =
		driver.cuLaunchKernel[0](summer->kernel, CHECKSUM_BLOCKS, 1, 1, CHECKSUM_THREADS, 1,
					 1, 0, summer->stream, params, NULL);

	if (!result)
		result = driver.cuStreamSynchronize[0](summer->stream);
	*sum = (struct checksum){ { 0, 0 } };
	for (int i = 0; i < CHECKSUM_BLOCKS && !result; i++) {
		sum->sum[0] += summer->blocks[i].sum[0];
		sum->sum[1] += summer->blocks[i].sum[1];
	}
	return result;
}
