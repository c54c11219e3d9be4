# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that read little of a large object: it is used in place in RAM, not brought to VRAM for them."""

from __future__ import annotations

from .tiers import Runner

RAM = "--chunk 2MiB --vram 40MiB --ram 128MiB"
# A device so slow, by what it says of itself, that no kernel here can have read the object.
SLOW = "1"

PROGRAM = """
import ctypes, sys
from ctypes import c_uint32, c_uint64, c_void_p
import numpy as np
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
fill, add = cuda.function("fill_u32"), cuda.function("add_u32")
EMBEDDING, WEIGHT = 32 * MIB // 4, 6 * MIB // 4  # a weight is too small to be looked at
how, tokens = sys.argv[1], int(sys.argv[2])

def new(words, value):
    address = cuda.alloc(4 * words)
    cuda("cuMemsetD32_v2", address, c_uint32(value), words)
    return address

embedding = new(EMBEDDING, 1)
weights = [new(WEIGHT, n) for n in range(8)]
expected = np.ones(EMBEDDING, dtype=np.uint32)
for token in range(tokens):
    row = 1024 * 97 * token % EMBEDDING  # 16 words of it are written
    cuda.launch(fill, c_uint64(embedding + 4 * row), c_uint64(16), c_uint32(token))
    expected[row : row + 16] = token
    for weight in weights:
        cuda.launch(add, c_uint64(weight), c_uint64(weight), c_uint64(weight), c_uint64(WEIGHT))
    if how == "tied":
        cuda.launch(add, c_uint64(embedding), c_uint64(embedding), c_uint64(embedding), c_uint64(EMBEDDING))
        expected += expected
    cuda("cuCtxSynchronize")
got = np.zeros(EMBEDDING, dtype=np.uint32)
cuda("cuMemcpyDtoH_v2", c_void_p(got.ctypes.data), embedding, got.nbytes)
assert (got == expected).all()
"""


def test_an_embedding_is_read_in_place(runner: Runner) -> None:
    result = runner.tiered(RAM, "-c", PROGRAM, "apart", 40, SOFTCUDA_MEMORY_KHZ=SLOW)
    assert result.status == 0, result.err
    assert result.counters["mapped_slots"] == 16
    assert result.counters["chunks_in_place"] > 20 * 16


def test_what_others_name_too_is_not(runner: Runner) -> None:
    result = runner.tiered(RAM, "-c", PROGRAM, "tied", 20, SOFTCUDA_MEMORY_KHZ=SLOW)
    assert result.status == 0, result.err
    assert result.counters["chunks_in_place"] == 0
