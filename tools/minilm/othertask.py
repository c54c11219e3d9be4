# SPDX-License-Identifier: GPL-2.0-or-later
"""Other work on the device between two batches: a buffer is filled by a kernel, read back and compared."""

from __future__ import annotations

import numpy as np

from minilm.driver import Driver
from minilm.registry import Program

__all__ = ["run"]

_PIECE = 4 << 20  # bytes read back at a time
_FIRST, _STEP = 12345, 2654435761  # an odd step visits all 2**32 values before any comes again


def run(driver: Driver, program: Program, size: int) -> None:
    """Uses `size` bytes of device memory, all in one launch. Raises RuntimeError if they read back wrong."""
    count = size // 4
    address = driver.allocate(size)
    try:
        program.launch("ramp", address, count, _FIRST, _STEP)
        program.synchronize()
        got = np.empty(_PIECE // 4, np.uint32)
        for start in range(0, count, len(got)):
            part = got[: count - start]
            driver.download(part, address + 4 * start)
            indices = np.arange(start, start + len(part), dtype=np.uint32)
            if not np.array_equal(part, indices * np.uint32(_STEP) + np.uint32(_FIRST)):
                raise RuntimeError(f"device memory does not hold what was written, at byte {4 * start}")
    finally:
        driver.free(address)
