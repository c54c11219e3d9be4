# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps changing so much device memory and compares every byte of it, until its input ends.

    program.py MIB

Prints a line after each pass over all of it, and exits with 1 at the first difference.
"""

from __future__ import annotations

import ctypes
import select
import sys
from ctypes import byref, c_size_t, c_uint64, c_void_p

PIECE = 2 << 20
STAMP = 16

cuda = ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: object) -> None:
    if code := getattr(cuda, name)(*arguments):
        sys.exit(f"{name} returned {code}")


def stamp(content: bytearray, piece: int, version: int) -> None:
    """No two pieces are the same, and none is as it was in another pass."""
    mark = piece.to_bytes(8, "little") + version.to_bytes(8, "little")
    content[:STAMP] = mark
    content[-STAMP:] = mark


def main() -> None:
    pieces = (int(sys.argv[1]) << 20) // PIECE
    context, memory = c_void_p(), c_uint64()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", byref(context), 0)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", byref(memory), c_size_t(pieces * PIECE))
    expected = bytearray(bytes(range(256)) * (PIECE // 256))
    got = bytearray(PIECE)
    from_expected, to_got = ((ctypes.c_char * PIECE).from_buffer(buffer) for buffer in (expected, got))
    version = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        for piece in range(pieces):
            at = c_uint64(memory.value + piece * PIECE)
            if version:
                stamp(expected, piece, version)
                call("cuMemcpyDtoH_v2", to_got, at, c_size_t(PIECE))
                if got != expected:
                    sys.exit(f"piece {piece} is not what pass {version} wrote")
            stamp(expected, piece, version + 1)
            call("cuMemcpyHtoD_v2", at, from_expected, c_size_t(PIECE))
        version += 1
        print(version, flush=True)
    print("right", flush=True)


main()
