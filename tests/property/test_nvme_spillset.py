# SPDX-License-Identifier: GPL-2.0-or-later
"""SpillSet on real files under arbitrary histories: every load returns the last store, or an error.

Several owners work at the same time, some of them are cancelled, now and then the disk lies, and
meanwhile paths are drained, restored, removed and added.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.nvme_harness import CHUNK, DATA, MemfdArena, arena_of, spill_size
from tierd.nvme import (
    ExtentError,
    NoSpace,
    SpillFile,
    SpillSet,
    Stored,
    open_spill_files,
    open_spill_set,
    probe,
)


@dataclass(frozen=True)
class Step:
    """What an owner does next; `which` chooses among what it has."""

    action: str
    which: int
    byte: int


steps = st.builds(
    Step,
    st.sampled_from(
        ["store", "store", "store same", "load", "load", "give back", "corrupt", "cancelled store"]
    ),
    st.integers(0, 7),
    st.integers(1, 255),
)
plumbing = st.builds(
    Step,
    st.sampled_from(["drain", "restore", "remove", "add", "wait"]),
    st.integers(0, 7),
    st.integers(1, 4),
)


def content(byte: int) -> bytes:
    """A chunk that is not the same everywhere."""
    return bytes([byte]) * (CHUNK - 1) + b"\0"


class Owner:
    """Does its steps with a slot of its own and checks every answer."""

    def __init__(self, spill: SpillSet, arena: MemfdArena, slot: int) -> None:
        self.spill = spill
        self.arena = arena
        self.slot = slot
        self.holds: dict[Stored, bytes] = {}
        self.rotten: set[Stored] = set()

    async def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.action.startswith("store"):
                await self.store(bytes([step.byte]) * CHUNK if "same" in step.action else content(step.byte))
            elif step.action == "cancelled store":
                await self.cancelled_store(content(step.byte))
            elif self.holds:
                stored = list(self.holds)[step.which % len(self.holds)]
                await getattr(self, step.action.replace(" ", "_"))(stored)

    async def store(self, data: bytes) -> None:
        self.arena[self.slot] = data
        try:
            self.holds[await self.spill.store(self.arena, self.slot)] = data
        except NoSpace:
            assert self.spill.free == 0

    async def cancelled_store(self, data: bytes) -> None:
        self.arena[self.slot] = data
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.store, data)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        # It may have been too late to cancel it. Either way the kernel is done with the slot.

    async def load(self, stored: Stored) -> None:
        self.arena[self.slot] = bytes(CHUNK)
        try:
            await self.spill.load(stored, self.arena, self.slot)
        except OSError:
            assert stored in self.rotten
            return
        assert self.arena[self.slot] == self.holds[stored]
        # What was corrupted may have been moved before, and the old place was.
        self.rotten.discard(stored)

    async def give_back(self, stored: Stored) -> None:
        self.spill.give_back(stored)
        del self.holds[stored]
        self.rotten.discard(stored)

    async def corrupt(self, stored: Stored) -> None:
        if stored.path is None:
            return
        fd = os.open(stored.path.name, os.O_RDWR)
        try:
            os.pwrite(fd, b"\0", DATA + stored.index * CHUNK + 7)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.rotten.add(stored)


async def plumb(spill: SpillSet, steps: Sequence[Step], directory: Path, nursery: trio.Nursery) -> None:
    """Changes the paths under the owners."""
    names = len(spill.snapshot())

    async def remove(name: str) -> None:
        path = spill.find(name)
        if path is None:
            return  # another removal was quicker
        spill.drain(path)
        try:
            await spill.remove(path)
        except ExtentError:
            assert not path.empties

    for step in steps:
        paths = [path.path for path in spill.snapshot()]
        path = spill.find(paths[step.which % len(paths)]) if paths else None
        if step.action == "add" and len(paths) < 5:
            name = directory / str(names)
            names += 1
            await spill.add(SpillFile.open(str(name), spill_size(step.byte), CHUNK))
        elif step.action == "wait":
            for _ in range(step.byte):
                await trio.lowlevel.checkpoint()
        elif path is not None and step.action == "drain":
            spill.drain(path)
        elif path is not None and step.action == "restore":
            spill.restore(path)
        elif path is not None and step.action == "remove":
            nursery.start_soon(remove, path.name)


async def history(sizes: Sequence[int], plans: Sequence[Sequence[Step]], changes: Sequence[Step]) -> None:
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as name, arena_of(len(plans)) as arena:
        directory = Path(name)
        paths = [(str(directory / str(n)), spill_size(size)) for n, size in enumerate(sizes)]
        async with open_spill_set(open_spill_files(paths, CHUNK), chunk=CHUNK) as spill:
            spill.add_arena(arena)
            owners = [Owner(spill, arena, slot) for slot in range(len(plans))]
            async with trio.open_nursery() as background:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(plumb, spill, changes, directory, background)
                    for owner, plan in zip(owners, plans, strict=True):
                        nursery.start_soon(owner.run, plan)
                for owner in owners:
                    for stored in list(owner.holds):
                        await owner.load(stored)
                rotten = set[Stored].union(*(owner.rotten for owner in owners))

                def drained() -> bool:
                    return not any(
                        path.empties
                        and any(stored is not None and stored not in rotten for stored in path.owners)
                        and any(other.takes for other in spill._paths if other is not path)
                        for path in spill._paths
                    )

                with trio.fail_after(60):
                    while not drained():
                        await trio.lowlevel.checkpoint()
                held = [stored for owner in owners for stored in owner.holds]
                placed = [(stored.path, stored.index) for stored in held if stored.path is not None]
                assert len(set(placed)) == len(placed)
                for path, index in placed:
                    assert path.owners[index] in held
                for stored in held:
                    spill.give_back(stored)
                # A chunk may be on its way between two paths: it is gone when it arrives.
                with trio.fail_after(60):
                    while any(path.used for path in spill.snapshot()):
                        await trio.lowlevel.checkpoint()
                background.cancel_scope.deadline = trio.current_time() + 10
            assert not background.cancel_scope.cancelled_caught  # every removal came to its end
            spill.remove_arena(arena)
        assert os.listdir(directory) == []


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    plans=st.lists(st.lists(steps, max_size=25), min_size=1, max_size=4),
    changes=st.lists(plumbing, max_size=8),
)
def test_every_load_returns_the_last_store(
    sizes: list[int], plans: list[list[Step]], changes: list[Step]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "_SECONDS", 0.0)  # one transfer of each lane
        trio.run(history, sizes, plans, changes)
