# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of devices that fail have in common: a T3 over them, and chunks in it.

Chunks are small, and nothing but what is waited for takes time: the guest is slow. What is found is
written down in docs/measurements.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.unit.nvme_harness import CHUNK, DATA, MemfdArena
from tests.vm.guest.harness import (
    SECTOR,
    Mapped,
    sectors,
)
from tierd.model import SpillOptions
from tierd.nvme import SpillFile, SpillSet, Stored, open_spill_set
from tierd.nvme.path import SpillPath

SLOTS = 8
DEADLINE = 0.4
"""Seconds after which a device stalls, here."""
CORRUPT = "5 corrupt_bio_byte 32 {} {} 0"
"""Of dm-flakey, with the direction and the value."""


def opened(device: str, deadline: float = 10) -> SpillFile:
    return SpillFile.open(device, None, CHUNK, options=SpillOptions(deadline=deadline))


@asynccontextmanager
async def spill_over(*devices: str, stalls: Sequence[str] = ()) -> AsyncIterator[SpillSet]:
    """A set over these devices, which get the same share each; of them those in `stalls` may stall.

    The others have a long deadline, which a guest on a busy host keeps.
    """
    files = [opened(device, DEADLINE if device in stalls else 10) for device in devices]
    async with open_spill_set(files, chunk=CHUNK) as spill:
        for device in devices:
            path_of(spill, device).rate = 1e9
        yield spill


class Chunks:
    """Chunks of random content that are in T3, and what they must be."""

    def __init__(self, spill: SpillSet, arena: MemfdArena) -> None:
        self.spill = spill
        self.arena = arena
        self.content: dict[Stored, bytes] = {}

    async def store(self, count: int) -> list[Stored]:
        """Puts `count` more there, from slot 0."""
        return [await self.store_from(0) for _ in range(count)]

    async def store_from(self, slot: int) -> Stored:
        content = self.arena[slot] = os.urandom(CHUNK)
        stored = await self.spill.store(self.arena, slot)
        self.content[stored] = content
        return stored

    async def load(self, stored: Stored, slot: int = 1) -> None:
        """Raises OSError."""
        self.arena[slot] = bytes(CHUNK)
        await self.spill.load(stored, self.arena, slot)
        assert self.arena[slot] == self.content[stored]

    async def fails(self, stored: Stored) -> OSError:
        """The error that its owner gets."""
        with pytest.raises(OSError) as caught:
            await self.load(stored)
        return caught.value

    async def all_there(self, *but: Stored) -> None:
        """Everything can be had, that which is named apart."""
        for stored in self.content:
            if stored not in but:
                await self.load(stored)


def path_of(spill: SpillSet, device: str) -> SpillPath:
    path = spill.find(device)
    assert path is not None
    return path


def states(spill: SpillSet) -> list[str]:
    return [path.state for path in spill.snapshot()]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(300):
        while not condition():  # noqa: ASYNC110 - the kernel sets no trio.Event
            await trio.sleep(0.01)


def extent(index: int) -> int:
    """Its first sector."""
    return (DATA + index * CHUNK) // SECTOR


def break_extents(device: Mapped, under: str, first: int, count: int, target: str = "error") -> None:
    """Makes a part of the device something else than what is under it."""
    begin, end, whole = extent(first), extent(first + count), sectors(under)
    device.load(
        f"0 {begin} linear {under} 0",
        f"{begin} {end - begin} {target}",
        f"{end} {whole - end} linear {under} {end}",
    )
