/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copies within device memory, for other files of the shim. */
#ifndef GREENBOOST_COPY_H
#define GREENBOOST_COPY_H

#include "residency.h"

/* As cuMemcpyDtoD or, with async, cuMemcpyDtoDAsync would be by the program. */
CUresult copy_bytes(CUdeviceptr dst, CUdeviceptr src, uint64_t bytes, bool async, CUstream stream,
		    unsigned int variant);

#endif
