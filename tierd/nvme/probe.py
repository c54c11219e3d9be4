# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a spill path is, found out by using it for a moment."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable

import trio

from .errors import NoSpace
from .path import SpillPath, Stored
from .slots import Arena, slot_memory
from .transit import TRANSIT_SLOTS, Transit

__all__ = ["measure_rate"]

_log = logging.getLogger(__name__)

_SECONDS = 0.05
"""In each direction. Striping needs the ratio of two devices to a few per cent, and start-up waits."""

_PATIENCE = 1.0
"""Seconds until it is given up: the device, or one that has to do with it, may stall."""


async def measure_rate(path: SpillPath, transit: Transit) -> None:
    """Sets path.rate: bytes/s of a chunk that is written once and read once.

    A path that fails, stalls or is drained meanwhile keeps the rate it had, and its state says the
    rest. Nobody else uses `transit`: a device that stalls may write to its slots later.
    """
    stored: dict[int, Stored] = {}  # by lane: no more extents than need be

    async def measure() -> None:
        async def write(lane: int, arena: Arena, slot: int) -> None:
            if lane in stored:
                _release(stored.pop(lane))
            stored[lane] = await path.store(arena, slot)

        async def read(lane: int, arena: Arena, slot: int) -> None:
            if stored[lane].path is not path:
                raise NoSpace("it is being drained")
            await path.load(stored[lane].index, arena, slot)

        written = await _rate_of(write, path, transit)
        path.rate = 2 / (1 / written + 1 / await _rate_of(read, path, transit))
        _log.info("%s: %.2f GB/s", path.name, path.rate / 1e9)

    try:
        transit.open()
        try:
            with trio.fail_after(_PATIENCE):
                await measure()
        finally:
            for each in stored.values():
                _release(each)
            transit.close()
    except* (OSError, NoSpace, trio.TooSlowError) as errors:
        first = errors.exceptions[0]
        why = "it took too long" if isinstance(first, trio.TooSlowError) else first
        _log.warning("%s: its speed could not be measured: %s", path.name, why)


def _release(stored: Stored) -> None:
    """Wherever it is: a path that is drained meanwhile has it moved like any other chunk."""
    if stored.path is not None:
        stored.path.release(stored)


async def _rate_of(
    transfer: Callable[[int, Arena, int], Awaitable[None]], path: SpillPath, transit: Transit
) -> float:
    moved = 0
    begin = time.perf_counter()

    async def lane(number: int) -> None:
        nonlocal moved
        async with transit.slot() as (arena, slot):
            with slot_memory(arena, slot) as memory:
                memory[:4096] = os.urandom(4096)
            while True:
                if path.empties:
                    raise NoSpace("it is being drained")
                await transfer(number, arena, slot)
                moved += 1
                if time.perf_counter() - begin > _SECONDS:
                    break

    async with trio.open_nursery() as nursery:
        for number in range(max(1, min(TRANSIT_SLOTS, path.extents.free // 2))):
            nursery.start_soon(lane, number)
    return moved * path.file.chunk / (time.perf_counter() - begin)
