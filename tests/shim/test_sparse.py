# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that read little of a large object: it is used in place in RAM, not brought to VRAM for them."""

from __future__ import annotations

import pytest

from .tiers import Runner

RAM = "--chunk 2MiB --vram 40MiB --ram 128MiB"
# A device so slow, by what it says of itself, that no kernel here can have read the object.
SLOW = "1"

PROGRAM = """
import os, threading
from contextlib import suppress
from ctypes import c_uint32, c_uint64, c_void_p
from pathlib import Path
import numpy as np
from tests.shim.softcuda.driver import MIB, Driver
from tierd.statemap import StateMap
cuda = Driver("libcuda.so.1")
fill, add = cuda.function("fill_u32"), cuda.function("add_u32")
EMBEDDING, WEIGHT = 32 * MIB // 4, 6 * MIB // 4  # a weight is too small to be looked at

def new(words, value):
    address = cuda.alloc(4 * words)
    cuda("cuMemsetD32_v2", address, c_uint32(value), words)
    return address

embedding = new(EMBEDDING, 1)
weights = [new(WEIGHT, n) for n in range(8)]
expected = np.ones(EMBEDDING, dtype=np.uint32)
tokens = 0

def token():
    global tokens
    row = 1024 * 97 * tokens % EMBEDDING  # 16 words of it are written
    cuda.launch(fill, c_uint64(embedding + 4 * row), c_uint64(16), c_uint32(tokens))
    expected[row : row + 16] = tokens
    for weight in weights:
        cuda.launch(add, c_uint64(weight), c_uint64(weight), c_uint64(weight), c_uint64(WEIGHT))
    tokens += 1

def double(words):
    cuda.launch(add, c_uint64(embedding), c_uint64(embedding), c_uint64(embedding), c_uint64(words))
    expected[:words] *= 2

for fd in Path("/proc/self/fd").iterdir():
    with suppress(FileNotFoundError):  # that of this listing
        if "greenboost-state" in os.readlink(fd):
            state = StateMap(int(fd.name))

def in_place():
    return state.counters()["chunks_in_place"]

def until_all_is_in_place():
    # The pager believes it in its own time, and what is in VRAM stays until it has to leave.
    while state.counters()["mapped_slots"] < 16:
        token()
        cuda.sync()
"""

RIGHT = """
got = np.zeros(EMBEDDING, dtype=np.uint32)
cuda("cuMemcpyDtoH_v2", c_void_p(got.ctypes.data), embedding, got.nbytes)
assert (got == expected).all()
"""

APART = """
until_all_is_in_place()
before = in_place()
for _ in range(3):
    token()
    cuda.sync()
assert in_place() == before + 3 * 16
"""

TWO_KERNELS = """
until_all_is_in_place()
before = in_place()
begin = threading.Event()
# What the other kernel reads is not known before one is over.
cuda("cuLaunchHostFunc", 0, cuda.host_function(begin.wait), None)
for _ in range(3):
    double(32)
begin.set()
cuda.sync()
assert in_place() == before + 3 * 16
"""

TIED = """
for _ in range(20):
    token()
    double(EMBEDDING)
    cuda.sync()
"""


@pytest.mark.parametrize("use", [APART, TWO_KERNELS], ids=["apart", "two kernels"])
def test_an_embedding_is_read_in_place(runner: Runner, use: str) -> None:
    result = runner.tiered(RAM, "-c", PROGRAM + use + RIGHT, SOFTCUDA_MEMORY_KHZ=SLOW)
    assert result.status == 0, result.err
    assert result.counters["mapped_slots"] == 16


def test_what_others_name_too_is_not(runner: Runner) -> None:
    result = runner.tiered(RAM, "-c", PROGRAM + TIED + RIGHT, SOFTCUDA_MEMORY_KHZ=SLOW)
    assert result.status == 0, result.err
    assert result.counters["chunks_in_place"] == 0
