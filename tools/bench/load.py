#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast memory is filled from pageable RAM under the shim, as loading a model's weights does.

    python tools/bench/load.py [--size SIZE] [--piece SIZE] [--pairs N] [--gpu] [--json] [-- FLAG...]

The same program runs bare and under `greenboost run FLAG...` in turn, N pairs: it allocates piece after
piece and copies each from RAM that is already there, and compares every byte in the end. Without FLAGs
all fits in VRAM; with `-- --vram 4GiB` the rest goes on to RAM, whose pages are made meanwhile. Runs on
the software device or on a GPU. Seconds and bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1]
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]

from bench.pairs import in_turn  # noqa: E402
from tierd.model import parse_size  # noqa: E402

# Each byte says which piece it is of. One is loaded before, so that nothing is done for the first time.
PROGRAM = """
import ctypes, mmap, sys, time
from ctypes import byref, c_char, c_size_t, c_uint64, c_void_p
size, piece = map(int, sys.argv[1:])
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    assert code == 0, f"{name} returned {code}"
context = c_void_p()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", byref(context), 0)
call("cuCtxSetCurrent", context)
weights = mmap.mmap(-1, size)
for number in range(size // piece):
    weights[number * piece : (number + 1) * piece] = bytes([number % 251 + 1]) * piece
start = ctypes.addressof(c_char.from_buffer(weights))
def load(bytes):
    held = []
    for at in range(0, bytes, piece):
        held.append(c_uint64())
        call("cuMemAlloc_v2", byref(held[-1]), c_size_t(piece))
        call("cuMemcpyHtoD_v2", held[-1], c_void_p(start + at), c_size_t(piece))
    call("cuCtxSynchronize")
    return held
for address in load(piece):
    call("cuMemFree_v2", address)
began = time.perf_counter()
held = load(size)
seconds = time.perf_counter() - began
back = ctypes.create_string_buffer(piece)
for number, address in enumerate(held):
    call("cuMemcpyDtoH_v2", back, address, c_size_t(piece))
    assert back.raw == bytes([number % 251 + 1]) * piece, f"piece {number} is not what was loaded"
    call("cuMemFree_v2", address)
print(seconds)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of loading under the shim.")
    parser.add_argument("--size", type=parse_size, default="8GiB", help="bytes loaded (default 8GiB)")
    parser.add_argument(
        "--piece", type=parse_size, default="128MiB", help="of an allocation (default 128MiB)"
    )
    parser.add_argument("--pairs", type=int, default=5, help="bare and shimmed runs, in turn (default 5)")
    parser.add_argument("--gpu", action="store_true", help="on NVIDIA's driver, not on the software device")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="of greenboost run, behind --")
    options = parser.parse_args()
    options.size -= options.size % options.piece
    if not options.size:
        parser.error("--size is less than --piece")
    command = [sys.executable, "-c", PROGRAM, str(options.size), str(options.piece)]
    room = str(options.size + (1 << 30))
    bare, shimmed = in_turn(command, options.flags, pairs=options.pairs, gpu=options.gpu, vram=room)
    speed = statistics.median(b / s for b, s in zip(bare, shimmed, strict=True))
    if options.json:
        print(
            json.dumps({"bytes": options.size, "bare_seconds": bare, "shim_seconds": shimmed, "speed": speed})
        )
        return
    rates = (options.size / statistics.median(seconds) / 1e9 for seconds in (bare, shimmed))
    print("bare {:.2f} GB/s, under the shim {:.2f} GB/s".format(*rates))
    print(f"{speed:.1%} as fast (median of {options.pairs} pairs)")


if __name__ == "__main__":
    main()
