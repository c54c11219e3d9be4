# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast is a plain copy between pinned RAM and VRAM just now?

    bus.py

Knows nothing of GreenBoost and needs no PyTorch: a program of the driver's API, so that its context is
small and may stay while others are measured. Prints one JSON object a line: first `ready`; then for each
line that it reads, a number of bytes, `copied` with the seconds that copying so many to VRAM took, 64 MiB
at a time, one right behind the other. It ends with its input.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

PIECE = 64 << 20
BUFFERS = 2
COMPUTE_MODE = 20  # CU_DEVICE_ATTRIBUTE_COMPUTE_MODE; 0: any number of programs

cuda = ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: object) -> None:
    status = getattr(cuda, name)(*arguments)
    if status:
        raise OSError(f"{name} failed with CUresult {status}")


def main() -> None:
    device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    mode = ctypes.c_int()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceGetAttribute", ctypes.byref(mode), COMPUTE_MODE, device)
    if mode.value:
        raise SystemExit("the GPU's compute mode lets no second program use it")
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuStreamCreate", ctypes.byref(stream), 1)  # does not wait for the null stream
    pairs = []
    for _ in range(BUFFERS):
        to, of = ctypes.c_uint64(), ctypes.c_void_p()
        call("cuMemAlloc_v2", ctypes.byref(to), ctypes.c_size_t(PIECE))
        call("cuMemHostAlloc", ctypes.byref(of), ctypes.c_size_t(PIECE), 0)
        ctypes.memset(of, 1, PIECE)  # pages that were never written might all be one
        pairs.append((to, of))
    print(json.dumps({"event": "ready"}), flush=True)
    for line in sys.stdin:
        left, at = int(line), 0
        began = time.perf_counter()
        while left > 0:
            to, of = pairs[at % BUFFERS]
            call("cuMemcpyHtoDAsync_v2", to, of, ctypes.c_size_t(min(left, PIECE)), stream)
            left -= PIECE
            at += 1
        call("cuStreamSynchronize", stream)
        print(json.dumps({"event": "copied", "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
