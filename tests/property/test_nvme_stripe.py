# SPDX-License-Identifier: GPL-2.0-or-later
"""SpillSet on real files under arbitrary histories: every load returns the last store, or an error.

Several owners work at the same time, some of them are cancelled, and now and then the disk lies.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.nvme_harness import CHUNK, DATA, MemfdArena, arena_of, spill_size
from tierd.nvme import Extent, NoSpace, SpillSet, open_spill_files, open_spill_set


@dataclass(frozen=True)
class Step:
    """What an owner does next; `which` chooses among the extents it has."""

    action: str
    which: int
    byte: int


steps = st.builds(
    Step,
    st.sampled_from(["take", "store", "store", "load", "load", "give back", "corrupt", "cancelled store"]),
    st.integers(0, 7),
    st.integers(1, 255),
)


class Owner:
    """Does its steps with a slot of its own and checks every answer."""

    def __init__(self, spill: SpillSet, arena: MemfdArena, slot: int, directory: Path) -> None:
        self.spill = spill
        self.arena = arena
        self.slot = slot
        self.directory = directory
        self.holds: dict[Extent, int | None] = {}  # the byte that fills it; None when nothing is stored
        self.rotten: set[Extent] = set()
        self.retired = 0

    async def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.action == "take":
                try:
                    self.holds[self.spill.take()] = None
                except NoSpace:
                    assert self.spill.free == 0
            elif self.holds:
                extent = list(self.holds)[step.which % len(self.holds)]
                await getattr(self, step.action.replace(" ", "_"))(extent, step.byte)

    async def store(self, extent: Extent, byte: int) -> None:
        self.arena[self.slot] = bytes([byte]) * CHUNK
        await self.spill.store(extent, self.arena, self.slot)
        self.holds[extent] = byte
        self.rotten.discard(extent)

    async def cancelled_store(self, extent: Extent, byte: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.spill.store, extent, self.arena, self.slot)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        # It may have been too late to cancel it. Either way the kernel is done with the slot.
        await self.store(extent, byte)

    async def load(self, extent: Extent, byte: int) -> None:
        self.arena[self.slot] = bytes(CHUNK)
        try:
            await self.spill.load(extent, self.arena, self.slot)
        except OSError:
            assert self.holds[extent] is None or extent in self.rotten
            return
        expected = self.holds[extent]
        assert expected is not None
        assert extent not in self.rotten
        assert self.arena[self.slot] == bytes([expected]) * CHUNK

    async def give_back(self, extent: Extent, byte: int) -> None:
        self.spill.give_back(extent)
        del self.holds[extent]
        self.rotten.discard(extent)

    async def corrupt(self, extent: Extent, byte: int) -> None:
        if self.holds[extent] is None or extent in self.rotten:
            return
        fd = os.open(self.directory / str(extent.path), os.O_RDWR)
        try:
            os.pwrite(fd, b"\0", DATA + extent.index * CHUNK + byte)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.rotten.add(extent)
        await self.load(extent, byte)


async def history(sizes: Sequence[int], plans: Sequence[Sequence[Step]]) -> None:
    with tempfile.TemporaryDirectory() as name, arena_of(len(plans)) as arena:
        directory = Path(name)
        paths = [(str(directory / str(n)), spill_size(size)) for n, size in enumerate(sizes)]
        async with open_spill_set(open_spill_files(paths, CHUNK), chunk=CHUNK) as spill:
            spill.add_arena(arena)
            owners = [Owner(spill, arena, slot, directory) for slot in range(len(plans))]
            async with trio.open_nursery() as nursery:
                for owner, plan in zip(owners, plans, strict=True):
                    nursery.start_soon(owner.run, plan)
            held = [extent for owner in owners for extent in owner.holds]
            assert len({(extent.path, extent.index) for extent in held}) == len(held)
            assert spill.total - spill.free == len(held)
            for extent in held:
                spill.give_back(extent)
            assert spill.free == spill.total <= sum(sizes)
            spill.remove_arena(arena)
        assert os.listdir(directory) == []


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    plans=st.lists(st.lists(steps, max_size=25), min_size=1, max_size=4),
)
def test_every_load_returns_the_last_store(sizes: list[int], plans: list[list[Step]]) -> None:
    trio.run(history, sizes, plans)
