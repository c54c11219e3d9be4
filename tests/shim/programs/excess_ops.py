# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations of random_ops.py, and kernels that name more chunks than VRAM holds.

    python -m tests.shim.programs.excess_ops CHUNKS SEED STEPS ALLOCATIONS MIB

Such a kernel names places in so many chunks of 2 MiB, or up to four more.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import c_uint64
from itertools import pairwise
from typing import Any

import numpy as np

from tests.shim.softcuda.driver import Driver

from .random_ops import Memory, run, u64

CHUNK = (2 << 20) // 4
MOST = 32
WORDS = 1 << 14


def words(address: int) -> Any:
    return np.ctypeslib.as_array((ctypes.c_uint32 * WORDS).from_address(address))


class Excess(Memory):
    least = 0

    def __init__(self, seed: int, mib: int) -> None:
        super().__init__(seed, mib)
        driver = Driver("libcuda.so.1")
        self.kernels["chain"] = ctypes.c_void_p(driver.register("chain", self._chain, *[8] * MOST))
        self.driver = driver  # which keeps what the kernel calls

    @staticmethod
    def _chain(params: Any) -> None:
        places = [words(c_uint64.from_address(params[i]).value) for i in range(MOST)]
        for one, other in pairwise(places):
            one *= 3
            one += other

    def chain(self) -> None:
        chunks = [(a, at) for a, v in self.shadow.items() for at in range(0, len(v) - WORDS, CHUNK)]
        named = self.random.sample(chunks, self.random.randint(self.least, self.least + 4))
        named += [named[-1]] * (MOST - len(named))
        stream = self.on_either_stream()
        self.launch("chain", stream, *(u64(address + 4 * at) for address, at in named))
        self.back(stream)
        places = [self.shadow[address][at : at + WORDS] for address, at in named]
        for one, other in pairwise(places):
            one *= 3
            one += other

    def operations(self) -> list[Callable[[], None]]:
        return [*super().operations(), self.chain]


if __name__ == "__main__":
    Excess.least = int(sys.argv[1])
    run(Excess, *map(int, sys.argv[2:]))
