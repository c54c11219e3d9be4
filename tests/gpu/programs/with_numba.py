# SPDX-License-Identifier: GPL-2.0-or-later
"""numba.cuda: kernels with shared memory and atomics over many arrays, on two streams.

    with_numba.py OUT.npz

Knows nothing of GreenBoost.
"""

import sys

import numpy as np
from numba import cuda, int64

THREADS = 256


@cuda.jit
def step(x):
    i = cuda.grid(1)
    if i < x.size:
        x[i] = x[i] * 1664525 + 1013904223


@cuda.jit
def total(x, out):
    part = cuda.shared.array(THREADS, int64)
    i, here = cuda.grid(1), cuda.threadIdx.x
    part[here] = x[i] if i < x.size else 0
    cuda.syncthreads()
    if here == 0:
        value = 0
        for other in range(THREADS):
            value += part[other]
        cuda.atomic.add(out, 0, value)


random = np.random.default_rng(0)
arrays = [cuda.to_device(random.integers(0, 1000, 4 << 20, dtype=np.int64)) for _ in range(16)]
totals = [cuda.to_device(np.zeros(1, np.int64)) for _ in arrays]
streams = [cuda.stream(), cuda.stream()]
for _ in range(3):
    for number, (array, out) in enumerate(zip(arrays, totals, strict=True)):
        stream, blocks = streams[number % 2], array.size // THREADS
        step[blocks, THREADS, stream](array)
        total[blocks, THREADS, stream](array, out)
for stream in streams:
    stream.synchronize()
np.savez(sys.argv[1], *(a.copy_to_host() for a in arrays), *(t.copy_to_host() for t in totals))
