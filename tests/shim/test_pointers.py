# SPDX-License-Identifier: GPL-2.0-or-later
"""Pointers in device memory: what kernels follow that nobody was told of."""

from __future__ import annotations

import re

import pytest

from . import sanitizer
from .pieces import BEGIN
from .tiers import Runner

SMALL = "--chunk 2MiB --vram 24MiB --ram 256MiB"

GROUPED = (
    BEGIN
    + """
import numpy as np
MIB = 1 << 20
LAYERS, EXPERTS, N = 16, 4, MIB // 4
between = int(sys.argv[1])
pool, pooled = c_uint64(), 0
if sys.argv[2] == "pool":  # in which ends are guessed
    assert cuda.cuMemAlloc_v2(byref(pool), c_size_t(160 * MIB)) == 0
module, stream = c_void_p(), c_void_p()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
assert cuda.cuStreamCreate(byref(stream), 1) == 0
def alloc(size):
    global pooled
    address = c_uint64(pool.value + pooled)
    if pool:
        pooled += -(-size // MIB) * MIB
    else:
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
assert cuda.cuCtxSynchronize() == 0  # the stream waits for no other
for d in (*dense, table):  # now it is known that not all of the pool is one object
    assert launch(b"add_u32", 64, d, d, d, c_uint64(1)) == 0
for turn in range(3):
    for layer in range(LAYERS):
        assert launch(b"point", 1, table, experts[layer], c_uint64(MIB), c_uint64(EXPERTS)) == 0
        for i in range(between):
            d = dense[(layer + i) % LAYERS]
            assert launch(b"add_u32", 64, d, d, d, c_uint64(16)) == 0
        assert launch(b"follow_u32", 64, outs[layer], table, c_uint64(EXPERTS), c_uint64(N)) == 0
got = np.zeros(N, dtype=np.uint32)
assert cuda.cuStreamSynchronize(stream) == 0
for layer in range(LAYERS):
    assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), outs[layer], c_size_t(got.nbytes)) == 0
    assert (got == weights[layer].sum(axis=0, dtype=np.uint32)).all(), layer
print("right")
"""
)


@pytest.mark.parametrize("where", ["apart", "pool"])
@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("between", [0, 1, 3])
def test_a_table_that_a_kernel_wrote_may_be_followed_by_the_next(
    runner: Runner, between: int, late: str, where: str
) -> None:
    """Experts of a layer are named by the launch that writes the table, and read by a later one."""
    result = runner.tiered(SMALL, "-c", GROUPED, between, where, SOFTCUDA_LATE=late)
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert result.counters["evictions"] > 0


STRAY = (
    BEGIN
    + """
MIB = 1 << 20
layers = int(sys.argv[1])
module = c_void_p()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
def alloc(size):
    address = c_uint64()
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(size)) == 0
    return address
def launch(name, *values):
    function = c_void_p()
    assert cuda.cuModuleGetFunction(byref(function), module, name) == 0
    pointers = (c_void_p * len(values))(*map(ctypes.addressof, values))
    return cuda.cuLaunchKernel(function, 64, 1, 1, 256, 1, 1, 0, None, pointers, None)
held = [alloc(4 * MIB) for _ in range(layers)]
table = alloc(8 * layers)
for i, address in enumerate(held):
    if "own" in sys.argv:
        address = c_uint64(4096)
    entry = c_uint64(table.value + 8 * i)
    assert launch(b"point", entry, address, c_uint64(0), c_uint64(1)) == 0
for address in held:
    assert launch(b"fill_u32", address, c_uint64(MIB), ctypes.c_uint32(1)) == 0
assert cuda.cuCtxSynchronize() == 0
launch(b"follow_u32", table, table, c_uint64(layers), c_uint64(1))
print(*(hex(address.value) for address in held))
print(*(getattr(cuda, f"cu{name}")(*values) for name, *values in (
    ("CtxSynchronize",), ("StreamSynchronize", None), ("MemAlloc_v2", byref(table), c_size_t(8)))))
"""
)


def test_who_follows_a_pointer_to_what_has_left_is_told_what_to_do(runner: Runner) -> None:
    """The table was written long ago, so nothing keeps what it points to."""
    result = runner.tiered(SMALL, "-c", STRAY, 16, SOFTCUDA_SPOIL="1")
    assert result.status == 0, result.err
    bases, errors = map(str.split, result.out.splitlines())
    assert errors == ["700"] * 3
    said = result.err[result.err.index("greenboost: a kernel touched") :].splitlines()
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in said[0]
    assert "Unless the program does so without GreenBoost too" in said[0]
    absent = [
        re.fullmatch(r"greenboost:   (0x[0-9a-f]+)-0x[0-9a-f]+, [12] of 2 chunks", line) for line in said
    ]
    assert {match[1] for match in absent if match} <= set(bases)
    assert sum(map(bool, absent)) == 8
    assert re.search(r"and \d more allocations", "".join(said))
    (launches,) = (line for line in said if "the last launches" in line)
    assert re.search(r": follow_u32 \(stream \(nil\)\)(, fill_u32 \(stream \(nil\)\)){7}$", launches)
    assert any("--pin" in line for line in said)
    assert result.err.count("a kernel touched") == 1


@pytest.mark.skipif("undefined" in sanitizer.SANITIZE, reason="it says so itself, and ends the program")
def test_of_a_fault_that_is_the_program_s_own_nothing_is_said(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", STRAY, 2, "own", SOFTCUDA_SPOIL="1")
    assert result.status == 0, result.err
    assert result.out.split()[2:] == ["700"] * 3
    assert "a kernel touched" not in result.err
