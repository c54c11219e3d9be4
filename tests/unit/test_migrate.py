# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving chunks to a real spill file and back; where the device must fail, a store that says so."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tierd.arena import Arena, open_pool
from tierd.migrate import Migrator, Records
from tierd.nvme.errors import SpillWriteError
from tierd.nvme.spillfile import open_spill_files
from tierd.nvme.spillset import SpillSet, Stored
from tierd.policy import Refused

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

CHUNK = 2 << 20
EXTENTS = 4


class Held:
    """Counts reserved extents, at most `limit`, as the tiers do."""

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.count = 0
        self.returns = 0

    def reserve(self) -> None:
        if self.count == self.limit:
            raise Refused("ENOSPC", "no more")
        self.count += 1

    def returned(self, count: int) -> None:
        self.count -= count
        self.returns += 1
        assert self.count >= 0


def content(byte: int) -> bytes:
    """A chunk that is not the same everywhere, which T3 would keep without an extent."""
    return bytes([byte]) * (CHUNK - 1) + b"\xff"


class Bench:
    """A migrator with an arena and a spill file of EXTENTS chunks."""

    def __init__(self, store: SpillSet, arena: Arena, records: Records | None = None) -> None:
        self.store = store
        self.arena = arena
        self.held = Held()
        self.migrator = Migrator(
            store, reserve=self.held.reserve, returned=self.held.returned, records=records
        )

    def fill(self, slot: int, byte: int) -> None:
        self.arena.memory[slot * CHUNK : (slot + 1) * CHUNK] = content(byte)

    def holds(self, slot: int, byte: int) -> bool:
        return bytes(self.arena.memory[slot * CHUNK : (slot + 1) * CHUNK]) == content(byte)


@asynccontextmanager
async def bench(tmp_path: Path, store_type: type[SpillSet] = SpillSet) -> AsyncIterator[Bench]:
    files = open_spill_files([(str(tmp_path / "spill"), (1 << 20) + EXTENTS * CHUNK)], CHUNK)
    with open_pool(limit=1, arena_bytes=4 * CHUNK, chunk=CHUNK) as pool:
        arena = pool.create(1)
        with store_type(files, chunk=CHUNK) as store:
            async with trio.open_nursery() as nursery:
                await nursery.start(store.run)
                store.add_arena(arena)
                it = Bench(store, arena)
                yield it
                it.migrator.close()
                assert it.held.count == 0
                assert store.free == store.total
                store.remove_arena(arena)
                nursery.cancel_scope.cancel()


async def refused(name: str, coroutine: object) -> None:
    with pytest.raises(Refused) as refusal:
        await coroutine  # type: ignore[misc]
    assert refusal.value.name == name


async def test_there_and_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for chunk in range(EXTENTS):
            it.fill(0, 10 + chunk)
            await it.migrator.spill(chunk, it.arena, 0)
        assert it.held.count == EXTENTS
        for chunk in reversed(range(EXTENTS)):
            await it.migrator.fetch(chunk, it.arena, chunk % 2)
            it.migrator.drop(chunk)
            assert it.holds(chunk % 2, 10 + chunk)
            assert it.held.count == chunk
        statistics = it.migrator.statistics()
        assert (statistics.written, statistics.read) == (EXTENTS * CHUNK, EXTENTS * CHUNK)
        assert (statistics.held, statistics.under_way) == (0, 0)


async def test_a_chunk_is_in_t3_once_or_not(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await refused("ENOENT", it.migrator.fetch(0, it.arena, 0))
        await it.migrator.spill(0, it.arena, 0)
        await refused("EEXIST", it.migrator.spill(0, it.arena, 1))
        it.migrator.drop(0)
        it.migrator.drop(0)
        await refused("ENOENT", it.migrator.fetch(0, it.arena, 0))
        assert it.held.count == 0


async def test_full(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        it.fill(0, 1)
        for chunk in range(EXTENTS):
            await it.migrator.spill(chunk, it.arena, 0)
        await refused("ENOSPC", it.migrator.spill(99, it.arena, 0))  # says the store
        it.held.limit = EXTENTS
        await refused("ENOSPC", it.migrator.spill(99, it.arena, 0))  # says the policy
        assert it.migrator.statistics().held == EXTENTS


async def test_a_freed_range_gives_its_extents_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for chunk in (5, 6, 1000):
            await it.migrator.spill(chunk, it.arena, 0)
        it.migrator.drop_range(6, 1)
        assert it.held.count == 2
        it.migrator.drop_range(0, 500)
        assert it.held.count == 1
        it.migrator.drop_range(1001, 5)
        assert it.held.count == 1


async def test_many_extents_are_given_back_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for chunk in range(8):
            await it.migrator.spill(chunk, it.arena, 0)
        it.migrator.drop_range(0, 4)
        it.migrator.close()
        assert (it.held.count, it.held.returns) == (0, 2)


class Gated(SpillSet):
    """Transfers begin when the gate is opened."""

    gate: trio.Event

    async def store(self, arena: Arena, slot: int) -> Stored:  # type: ignore[override]
        await self.gate.wait()
        return await super().store(arena, slot)

    async def load(self, stored: Stored, arena: Arena, slot: int) -> None:  # type: ignore[override]
        await self.gate.wait()
        await super().load(stored, arena, slot)


async def test_one_operation_a_chunk(tmp_path: Path) -> None:
    async with bench(tmp_path, Gated) as it:
        for first in ("spill", "fetch"):
            Gated.gate = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getattr(it.migrator, first), 3, it.arena, 0)
                await trio.testing.wait_all_tasks_blocked()
                assert it.migrator.statistics().under_way == 1
                assert it.migrator.statistics().held == 1
                await refused("EBUSY", it.migrator.spill(3, it.arena, 1))
                await refused("EBUSY", it.migrator.fetch(3, it.arena, 1))
                with pytest.raises(Refused, match="chunk 3 is being moved"):
                    it.migrator.drop(3)
                with pytest.raises(Refused, match="chunk 3 is being moved"):
                    it.migrator.drop_range(0, 10)
                it.migrator.drop_range(4, 10)
                Gated.gate.set()


async def test_cancelled_operations_leave_nothing_taken(tmp_path: Path) -> None:
    async with bench(tmp_path, Gated) as it:
        Gated.gate = trio.Event()
        with trio.move_on_after(0):
            await it.migrator.spill(0, it.arena, 0)
        assert (it.held.count, it.store.free) == (0, EXTENTS)
        Gated.gate.set()
        it.fill(0, 7)
        await it.migrator.spill(0, it.arena, 0)
        Gated.gate = trio.Event()
        with trio.move_on_after(0):
            await it.migrator.fetch(0, it.arena, 1)
        Gated.gate.set()
        await it.migrator.fetch(0, it.arena, 1)
        assert it.holds(1, 7)


class Failing(SpillSet):
    """The device fails as often as `failures` says."""

    failures = 0

    def _fail(self) -> None:
        if self.failures:
            Failing.failures -= 1
            raise SpillWriteError(errno.EIO, "Input/output error", "/dev/broken")

    async def store(self, arena: Arena, slot: int) -> Stored:  # type: ignore[override]
        self._fail()
        return await super().store(arena, slot)

    async def load(self, stored: Stored, arena: Arena, slot: int) -> None:  # type: ignore[override]
        self._fail()
        await super().load(stored, arena, slot)


async def test_a_failing_device_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path, Failing) as it:
        Failing.failures = 1
        await refused("EIO", it.migrator.spill(0, it.arena, 0))
        assert it.held.count == 0
        it.fill(0, 4)
        await it.migrator.spill(0, it.arena, 0)
        Failing.failures = 1
        await refused("EIO", it.migrator.fetch(0, it.arena, 1))
        assert it.held.count == 1
        await it.migrator.fetch(0, it.arena, 1)
        assert it.holds(1, 4)


class Written:
    """What is written down, change by change."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, tuple[int, ...]]] = []

    def store(self, chunk: int, stored: Stored) -> None:
        self.changes.append(("store", (chunk,)))

    def forget(self, chunks: Sequence[int]) -> None:
        self.changes.append(("forget", tuple(chunks)))


async def test_what_is_written_down_already_is_not_written_again(tmp_path: Path) -> None:
    """Every row costs time of the thread that serves everybody, and T3 may have a million chunks."""
    written = Written()
    async with bench(tmp_path) as it:
        it.fill(0, 1)
        await it.migrator.spill(5, it.arena, 0)
        await it.migrator.spill(6, it.arena, 0)
        following = Bench(it.store, it.arena, written)
        following.held.count = it.held.count
        stored = it.migrator.leave()
        it.held.count = 0
        following.migrator.inherit(stored)
        assert written.changes == []
        moved = stored[5].moved
        assert moved is not None
        moved(stored[5])
        following.migrator.drop(6)
        following.migrator.close()  # which ends the session's part of it as a whole
        assert written.changes == [("store", (5,)), ("forget", (6,))]
        assert following.held.count == 0
