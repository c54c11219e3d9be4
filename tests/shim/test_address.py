# SPDX-License-Identifier: GPL-2.0-or-later
"""Paged memory lies where two small integers side by side are no address of it."""

from __future__ import annotations

import pytest

from . import sanitizer
from .tiers import Runner

PROGRAM = """
import ctypes, sys
from ctypes import byref, c_size_t, c_uint32, c_uint64, c_void_p
from tests.shim.softcuda.driver import MIB, Driver
FIRST, LAST = 0x4B17 << 32, 0x5000 << 32
LOW, SMALL = 3 << 32, 0x1000 << 32
TAKEN = {"free": [], "taken": [(FIRST, 1 << 30)], "full": [(LOW, 1 << 34), (FIRST, LAST - FIRST)]}
libc = ctypes.CDLL(None)
libc.mmap.restype, FIXED_PRIVATE_UNRESERVED = c_void_p, 0x104022
for start, size in TAKEN[sys.argv[1]]:
    assert libc.mmap(c_void_p(start), c_size_t(size), 0, FIXED_PRIVATE_UNRESERVED, -1, c_size_t(0)) == start
cuda = Driver("libcuda.so.1")

def reserve(size, alignment, hint):
    at, size = c_uint64(), c_size_t(size)
    cuda("cuMemAddressReserve", byref(at), size, c_size_t(alignment), c_uint64(hint), c_uint64(0))
    assert at.value % max(alignment, 1) == 0
    return at.value

held = [cuda.alloc(8 * MIB) for _ in range(16)]
pieces = [cuda.alloc(size * MIB) for size in (6, 10, 2, 34)]  # the next is not where these end
for i, address in enumerate(held):
    cuda("cuMemsetD32_v2", address, c_uint32(i), 2 * MIB)
for i, address in enumerate(held):
    got = c_uint32()
    cuda("cuMemcpyDtoH_v2", byref(got), address + 8 * MIB - 4, 4)
    assert got.value == i
sizes = ((32, 0), (64, 2), (64, 64), (36, 1024))
reserved = [reserve(size * MIB, aligned * MIB, 0) for size, aligned in sizes]
assert all(address >= SMALL for address in held + pieces + reserved)
assert reserve(32 * MIB, 0, LAST) == LAST  # the program's own wish
vast = reserve((LAST - FIRST) // 2, 0, 0)  # is not to use it up
assert not FIRST <= vast < LAST
high = 0
for _ in range(100):  # round and round: each fifth lies over what is held
    at = reserve(1 << 40, 0, 0)
    high += at >= SMALL
    cuda("cuMemAddressFree", c_uint64(at), c_size_t(1 << 40))
assert high >= 75
if sys.argv[1] == "full":
    assert not any(FIRST <= address < LAST for address in held + pieces + reserved)
    # The driver's own place does as well, and is taken: another try would leave a hole.
    before = reserve(32 * MIB, 0, 0)
    assert reserve(32 * MIB, 0, 0) == before + 32 * MIB
else:
    assert all(FIRST <= address < LAST for address in held + pieces + reserved)
"""


@pytest.mark.parametrize("place", ["free", "taken", "full"])
def test_where_paged_memory_lies(runner: Runner, place: str) -> None:
    if sanitizer.SANITIZE == "thread" or (sanitizer.SANITIZE and place != "free"):
        pytest.skip("the sanitizer has these addresses for itself")
    result = runner.tiered("--chunk 2MiB --vram 32MiB --ram 256MiB", "-c", PROGRAM, place)
    assert result.status == 0, result.err
    assert result.counters["evictions"] > 0
