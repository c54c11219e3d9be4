# SPDX-License-Identifier: GPL-2.0-or-later
"""Pieces of the programs that are run, and the tiers that most of them are run in."""

from __future__ import annotations

SMALL = "--chunk 2MiB --vram 40MiB --ram 16MiB --spill {dir}/spill:256MiB"

BEGIN = """
import ctypes, sys
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
cuda = ctypes.CDLL("libcuda.so.1")
context = c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
"""

VIEW = (
    BEGIN
    + """
MIB = 1 << 20
module, function, a, other = c_void_p(), c_void_p(), c_uint64(), c_uint64()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
assert cuda.cuModuleGetFunction(byref(function), module, b"fill_u32") == 0

def fill(at, n, value):
    params = c_uint64(at), c_uint64(n), ctypes.c_uint(value)
    pointers = (c_void_p * 3)(*(ctypes.addressof(p) for p in params))
    assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None) == 0

def evict():
    for address in others:
        assert cuda.cuMemsetD8_v2(address, ctypes.c_ubyte(1), c_size_t(16 * MIB)) == 0

def read(at):
    got = ctypes.c_uint()
    assert cuda.cuMemcpyDtoH_v2(byref(got), c_uint64(at), c_size_t(4)) == 0
    return got.value

others = [c_uint64() for _ in range(4)]
for address in others:
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(16 * MIB)) == 0
"""
)

FULL = (
    BEGIN
    + """
import numpy as np
MIB = 1 << 20
held, refused = [], None
while refused is None and len(held) < 1000:
    address = c_uint64()
    refused = cuda.cuMemAlloc_v2(byref(address), c_size_t(4 * MIB)) or None
    if refused is None:
        data = np.full(MIB, len(held) * 7919 + 1, dtype=np.uint32)
        assert cuda.cuMemcpyHtoD_v2(address, c_void_p(data.ctypes.data), c_size_t(data.nbytes)) == 0
        held.append(address)
assert refused == 2, refused  # CUDA_ERROR_OUT_OF_MEMORY
got = np.zeros(MIB, dtype=np.uint32)
for i, address in enumerate(held):
    assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), address, c_size_t(got.nbytes)) == 0
    assert (got == i * 7919 + 1).all(), i
assert cuda.cuMemFree_v2(held.pop()) == 0
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(4 * MIB)) == 0
print(len(held) * 4)
"""
)

CHUNK_BY_CHUNK = (
    BEGIN
    + """
addresses = [c_uint64() for _ in range(int(sys.argv[1]))]
for i, address in enumerate(addresses):
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(2 << 20)) == 0
    assert cuda.cuMemsetD32_v2(address, i, c_size_t(512 << 10)) == 0
got = (ctypes.c_uint * 4)()
for i, address in enumerate(addresses):
    assert cuda.cuMemcpyDtoH_v2(got, address, c_size_t(16)) == 0
    assert list(got) == [i] * 4
print("right")
"""
)
"""Fills so many chunks of 2 MiB, one allocation each, and reads them back."""
