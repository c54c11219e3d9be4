# SPDX-License-Identifier: GPL-2.0-or-later
"""Chunks until no tier has room, used in a loop, so that it is known which comes next.

    full_ops.py LEFT PASSES

LEFT of them are first used in the midst of a pass, one every 20 launches from the fourth pass on. On the
software device, under the shim; exits 1 at the first difference.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from ctypes import c_uint32, c_uint64

from tests.shim.softcuda.driver import MIB, CudaError, Driver

left, passes = map(int, sys.argv[1:])
cuda = Driver("libcuda.so.1")
fill = cuda.function("fill_u32")
chunks: list[int] = []
values: dict[int, int] = {}
with suppress(CudaError):
    while True:
        chunks.append(cuda.alloc(2 * MIB))


def write(index: int) -> None:
    values[index] = len(chunks) * values.get(index, 1) + index & 0xFFFFFFFF
    cuda.launch(fill, c_uint64(chunks[index]), c_uint64(16), c_uint32(values[index]))


def check(index: int) -> None:
    got = int.from_bytes(cuda.read(chunks[index], 4), sys.byteorder)
    assert got == values[index], (index, got, values[index])


loop, new = range(len(chunks) - left), iter(range(len(chunks) - left, len(chunks)))
for number in range(passes):
    for index in loop:
        if number and index % 3 == 0:
            check(index)
        write(index)
        if number >= 3 and index % 20 == 7 and (one := next(new, None)) is not None:
            write(one)
for index in values:
    check(index)
print("right")
