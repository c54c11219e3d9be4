# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs are told of memory."""

from __future__ import annotations

from .pieces import BEGIN, SMALL
from .tiers import Runner

TOTALS = (
    BEGIN
    + """
free, total, device = c_size_t(), c_size_t(), c_size_t()
address = c_uint64()
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(8 << 20)) == 0
assert cuda.cuMemGetInfo_v2(byref(free), byref(total)) == 0
assert cuda.cuDeviceTotalMem_v2(byref(device), 0) == 0
base, size = c_uint64(), c_size_t()
assert cuda.cuMemGetAddressRange_v2(byref(base), byref(size), c_uint64(address.value + 5)) == 0
assert (base.value, size.value) == (address.value, 8 << 20)
kind = c_int()
assert cuda.cuPointerGetAttribute(byref(kind), 2, c_uint64(address.value + (3 << 20))) == 0
assert kind.value == 2
print(total.value == device.value, total.value >> 20, (total.value - free.value) >> 20)
"""
)


def test_totals_are_the_sum_of_the_tiers(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", TOTALS)
    assert result.status == 0, result.err
    same, total, used = result.out.split()
    assert same == "True"
    assert 40 + 16 + 256 - 16 <= int(total) <= 40 + 16 + 256
    assert int(used) >= 8


TAKEN = (
    BEGIN
    + """
import struct
MIB = 1 << 20
big, handle = c_uint64(), c_uint64()
free, total = c_size_t(), c_size_t()
assert cuda.cuMemAlloc_v2(byref(big), c_size_t(80 * MIB)) == 0
assert cuda.cuMemGetInfo_v2(byref(free), byref(total)) == 0
before = free.value
# Memory that the shim has no part in, as it is compressible: of the device's 64 MiB 28 are left, where 40
# were promised.
prop = ctypes.create_string_buffer(struct.pack("<4iQB", 1, 0, 1, 0, 0, 1), 64)
assert cuda.cuMemCreate(byref(handle), c_size_t(36 * MIB), prop, c_uint64(0)) == 0
assert cuda.cuMemsetD8_v2(big, ctypes.c_ubyte(7), c_size_t(80 * MIB)) == 0
assert cuda.cuMemGetInfo_v2(byref(free), byref(total)) == 0
print((before - free.value) // MIB)
"""
)


def test_vram_that_others_took_is_not_counted_on(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", TAKEN)
    assert (result.status, result.out) == (0, "12\n"), result.err


ATTRIBUTES = (
    BEGIN
    + """
address, value = c_uint64(), c_uint64()
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(80 << 20)) == 0  # of which nothing is in VRAM yet
print([cuda.cuPointerGetAttribute(byref(value), a, address) for a in (6, 14, 16, 17, 18, 19, 20, 99)])
"""
)


def test_what_is_in_no_tier_yet_has_attributes(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", ATTRIBUTES)
    assert (result.status, result.out) == (0, "[0, 0, 0, 0, 0, 0, 0, 1]\n"), result.err
