# SPDX-License-Identifier: GPL-2.0-or-later
"""CuPy: its pool, element-wise and raw kernels, matrix products, sorting and an FFT over many arrays.

    with_cupy.py OUT.npz

Knows nothing of GreenBoost.
"""

import sys

import cupy as cp
import numpy as np

square = cp.RawKernel(
    r"""
extern "C" __global__ void square(float *x, long n)
{
	for (long i = blockIdx.x * (long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long)blockDim.x)
		x[i] = x[i] * x[i];
}
""",
    "square",
)

random = np.random.default_rng(0)
arrays = [cp.asarray(random.standard_normal((2048, 4096), dtype=np.float32)) for _ in range(24)]
total = cp.zeros((2048, 2048), cp.float32)
for _ in range(2):
    for array in arrays:
        square((132,), (256,), (array, np.int64(array.size)))
        array[...] = cp.sqrt(array) - 0.5
        total += array @ array.T / 4096
sorted_rows = cp.sort(arrays[0], axis=1)
spectrum = cp.fft.rfft(arrays[1], axis=1)
means = cp.stack([array.mean() for array in arrays])
np.savez(sys.argv[1], total.get(), sorted_rows.get(), spectrum.get(), means.get())
