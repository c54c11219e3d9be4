# SPDX-License-Identifier: GPL-2.0-or-later
"""Pointers in device memory: what kernels follow that nobody was told of."""

from __future__ import annotations

import pytest

from .test_shim import BEGIN
from .tiers import Runner

SMALL = "--chunk 2MiB --vram 24MiB --ram 256MiB"

GROUPED = (
    BEGIN
    + """
import numpy as np
MIB = 1 << 20
LAYERS, EXPERTS, N = 16, 4, MIB // 4
between = int(sys.argv[1])
module, stream = c_void_p(), c_void_p()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
assert cuda.cuStreamCreate(byref(stream), 1) == 0
def alloc(size):
    address = c_uint64()
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(size)) == 0
    return address
def launch(name, blocks, *values):
    function = c_void_p()
    assert cuda.cuModuleGetFunction(byref(function), module, name) == 0
    pointers = (c_void_p * len(values))(*map(ctypes.addressof, values))
    return cuda.cuLaunchKernel(function, blocks, 1, 1, 256, 1, 1, 0, stream, pointers, None)
rng = np.random.default_rng(1)
weights = rng.integers(0, 1 << 32, (LAYERS, EXPERTS, N), dtype=np.uint32)
experts, dense, outs = [], [], []
for layer in range(LAYERS):  # 64 MiB of experts, 32 of what is named as it should be
    experts.append(alloc(EXPERTS * MIB))
    dense.append(alloc(2 * MIB))
    outs.append(alloc(4 * N))
    data = weights[layer]
    assert cuda.cuMemcpyHtoD_v2(experts[-1], c_void_p(data.ctypes.data), c_size_t(data.nbytes)) == 0
    assert cuda.cuMemsetD32_v2(dense[-1], ctypes.c_uint(layer), c_size_t(MIB // 2)) == 0
table = alloc(EXPERTS * 8)
for turn in range(3):
    for layer in range(LAYERS):
        assert launch(b"point", 1, table, experts[layer], c_uint64(MIB), c_uint64(EXPERTS)) == 0
        for i in range(between):
            d = dense[(layer + i) % LAYERS]
            assert launch(b"add_u32", 64, d, d, d, c_uint64(16)) == 0
        assert launch(b"follow_u32", 64, outs[layer], table, c_uint64(EXPERTS), c_uint64(N)) == 0
got = np.zeros(N, dtype=np.uint32)
for layer in range(LAYERS):
    assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), outs[layer], c_size_t(got.nbytes)) == 0
    assert (got == weights[layer].sum(axis=0, dtype=np.uint32)).all(), layer
print("right")
"""
)


@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("between", [0, 1, 3])
def test_a_table_that_a_kernel_wrote_may_be_followed_by_the_next(
    runner: Runner, between: int, late: str
) -> None:
    """Experts of a layer are named by the launch that writes the table, and read by a later one."""
    result = runner.tiered(SMALL, "-c", GROUPED, between, SOFTCUDA_LATE=late)
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert result.counters["evictions"] > 0
