# SPDX-License-Identifier: GPL-2.0-or-later
"""Spill paths that come and go while they are used."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.nvme_harness import CHUNK, MemfdArena, added, limited
from tests.unit.spillset_harness import (
    corrupt,
    filled_arena,
    gated,
    opened,
    path_of,
    spill_over,
    states,
    until,
    used,
)
from tierd.nvme import ExtentError, SpillFile, Stored, drain, open_spill_set, probe
from tierd.nvme.transit import Transit

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

arena = pytest.fixture(filled_arena)


async def test_a_path_is_drained_while_it_is_used(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 16) as spill:
        with added(spill, arena):
            contents: dict[Stored, bytes] = {}
            for _ in range(16):
                arena[0] = os.urandom(CHUNK)
                contents[await spill.store(arena, 0)] = arena[0]
            old = path_of(spill, tmp_path / "0")
            await spill.add(opened(tmp_path / "1", 20))
            spill.drain(old)
            assert spill.total == 20

            async def use(slot: int, owned: list[Stored]) -> None:
                for stored in owned * 3:
                    await spill.load(stored, arena, slot)
                    assert arena[slot] == contents[stored]

            async with trio.open_nursery() as nursery:
                for slot in range(4):
                    nursery.start_soon(use, slot, list(contents)[slot::4])
                await spill.remove(old)
            assert not (tmp_path / "0").exists()
            assert used(spill) == [16]
            for stored, content in contents.items():
                await spill.load(stored, arena, 1)
                assert arena[1] == content
                spill.give_back(stored)
            assert used(spill) == [0]


async def test_a_drain_waits_for_room_and_can_be_called_off(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 4, 4) as spill:
        with added(spill, arena):
            stored = [await spill.store(arena, 0) for _ in range(8)]
            first, second = (path_of(spill, tmp_path / name) for name in "01")
            spill.drain(first)
            async with trio.open_nursery() as nursery:

                async def remove() -> None:
                    with pytest.raises(ExtentError, match="is in use again"):
                        await spill.remove(first)

                nursery.start_soon(remove)
                spill.give_back(next(each for each in stored if each.path is second))
                await until(lambda: used(spill) == [3, 4])
                assert spill.restore(first)
            assert states(spill) == ["active", "active"]
            assert sum(used(spill)) == 7


async def test_given_back_while_it_is_moved(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            old = path_of(spill, tmp_path / "0")
            await spill.add(opened(tmp_path / "1", 1))
            reading, go_on = trio.Event(), trio.Event()
            read = SpillFile.read

            async def gated(self: SpillFile, *args: object, **kwargs: object) -> None:
                reading.set()
                await go_on.wait()
                await read(self, *args, **kwargs)  # type: ignore[arg-type]

            monkeypatch.setattr(SpillFile, "read", gated)
            spill.drain(old)
            await reading.wait()
            spill.give_back(stored)
            go_on.set()
            await spill.remove(old)
            await until(lambda: used(spill) == [0])


async def test_a_chunk_that_cannot_be_moved_stays_for_its_owner(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            bad, good = await spill.store(arena, 0), await spill.store(arena, 0)
            old = path_of(spill, tmp_path / "0")
            corrupt(tmp_path / "0", bad)
            await spill.add(opened(tmp_path / "1", 4))
            spill.drain(old)
            await until(lambda: used(spill) == [1, 1])
            with pytest.raises(OSError, match="other bytes"):
                await spill.load(bad, arena, 1)
            await spill.load(good, arena, 1)
            assert arena[1] == arena[0]
            spill.give_back(bad)
            await spill.remove(old)


async def test_what_is_being_written_when_a_drain_begins_is_moved_too(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena), gated(monkeypatch, "write", tmp_path / "0") as (came, go_on):
            old = path_of(spill, tmp_path / "0")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spill.store, arena, 0)
                await came.wait()
                old.rate = 1e9  # not to be measured
                await spill.add(opened(tmp_path / "1", 1))
                spill.drain(old)
                await trio.testing.wait_all_tasks_blocked(0.01)
                go_on.set()
            await until(lambda: used(spill) == [0, 1])


async def test_a_path_is_added_while_another_stalls(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_spill_set([opened(tmp_path / "0", 4, deadline=0.1)], chunk=CHUNK) as spill:
        with added(spill, arena), gated(monkeypatch, "write", tmp_path / "0") as (_, go_on):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spill.store, arena, 0)
                await until(lambda: states(spill) == ["stalled"])
                with trio.fail_after(60):
                    await spill.add(opened(tmp_path / "1", 4))
                    await spill.store(arena, 0)
                assert used(spill) == [1, 1]
                go_on.set()


async def test_a_path_is_added_while_a_drain_waits_for_a_device_that_stalls(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spill_over(tmp_path, 8, 8) as spill:
        with added(spill, arena), gated(monkeypatch, "read", tmp_path / "0") as (came, go_on):
            for _ in range(8):
                await spill.store(arena, 0)
            assert 0 < used(spill)[0] < 8
            spill.drain(path_of(spill, tmp_path / "0"))
            await came.wait()
            with trio.fail_after(60):
                await spill.add(opened(tmp_path / "2", 8))
                other = path_of(spill, tmp_path / "1")
                spill.drain(other)
                await spill.remove(other)
            go_on.set()


async def test_a_drain_while_the_speed_is_measured(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spill_over(tmp_path, 4, 4) as spill:
        monkeypatch.setattr(probe, "_SECONDS", 0.3)
        old = path_of(spill, tmp_path / "0")
        old.rate = None
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spill.add, opened(tmp_path / "2", 4))
                await until(lambda: any(each is not None for each in old.owners))
                spill.drain(old)
                await spill.remove(old)
        assert used(spill) == [0, 0]
        assert states(spill) == ["active", "active"]


async def test_no_memory_to_move_chunks_through(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    open_ = Transit.open

    def exhausted(self: Transit) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        open_(self)

    monkeypatch.setattr(drain, "_PAUSE", 0.01)
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            await spill.store(arena, 0)
            monkeypatch.setattr(Transit, "open", exhausted)
            await spill.add(opened(tmp_path / "1", 2))
            assert tries == 2  # neither could be measured
            spill.drain(path_of(spill, tmp_path / "0"))
            await until(lambda: used(spill) == [0, 1])


async def test_a_chunk_that_cannot_be_written_yet_is_not_lost(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = SpillFile.write
    failures = 0

    async def failing(self: SpillFile, *args: object, **kwargs: object) -> None:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        await write(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(drain, "_PAUSE", 0.01)
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            old = path_of(spill, tmp_path / "0")
            for name in "12":
                await spill.add(opened(tmp_path / name, 8))
            monkeypatch.setattr(SpillFile, "write", failing)
            spill.drain(old)
            with trio.fail_after(60):
                await spill.remove(old)
            await spill.load(stored, arena, 1)
            assert arena[1] == arena[0]


async def test_an_addition_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with spill_over(tmp_path) as spill:
        file = opened(tmp_path / "0", 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await spill.add(file)
        assert (spill.snapshot(), file.fd) == ((), -1)


async def test_a_removal_that_is_cancelled_late_leaves_nothing(tmp_path: Path) -> None:
    async with spill_over(tmp_path, 1) as spill:
        path = path_of(spill, tmp_path / "0")
        spill.drain(path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spill.remove, path)
            while not path.leave.is_set():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await until(lambda: path.file.fd == -1)


async def test_a_path_with_chunks_that_cannot_be_read_is_removed(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            bad, good = await spill.store(arena, 0), await spill.store(arena, 0)
            old = path_of(spill, tmp_path / "0")
            corrupt(tmp_path / "0", bad)
            await spill.add(opened(tmp_path / "1", 4))
            spill.drain(old)
            await until(lambda: used(spill) == [1, 1])
            with trio.fail_after(60):
                await spill.remove(old)
            assert used(spill) == [1]
            with pytest.raises(OSError, match="was lost with its spill path"):
                await spill.load(bad, arena, 1)
            spill.give_back(bad)
            with pytest.raises(ExtentError):
                spill.give_back(bad)
            await spill.load(good, arena, 1)
            assert (arena[1], spill.same_filled) == (arena[0], 0)


async def test_a_drain_that_is_called_off_when_all_is_moved(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            path = path_of(spill, tmp_path / "0")
            spill.drain(path)
            async with trio.open_nursery() as nursery:

                async def remove() -> None:
                    with pytest.raises(ExtentError, match="is in use again"):
                        await spill.remove(path)

                nursery.start_soon(remove)
                await trio.testing.wait_all_tasks_blocked()
                await until(lambda: not path.under_way)
                spill.give_back(stored)
                assert spill.restore(path)  # and whoever asked for it is told that it is in use
            assert states(spill) == ["active"]


async def test_what_fails_to_be_read_where_it_was_is_read_where_it_is(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            old = path_of(spill, tmp_path / "0")
            await spill.add(opened(tmp_path / "1", 1))
            read = SpillFile.read
            came, go_on = trio.Event(), trio.Event()

            async def failing(self: SpillFile, *args: object, **kwargs: object) -> None:
                if self is old.file and not came.is_set():
                    came.set()
                    await go_on.wait()
                if self is old.file and go_on.is_set():
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                await read(self, *args, **kwargs)  # type: ignore[arg-type]

            monkeypatch.setattr(SpillFile, "read", failing)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spill.load, stored, arena, 1)
                await came.wait()
                spill.drain(old)
                await until(lambda: stored.path is not old)
                go_on.set()
            assert arena[1] == arena[0]


async def test_a_path_that_cannot_be_added_is_closed(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            file = opened(tmp_path / "1", 1)
            with limited(resource.RLIMIT_NOFILE, 3), pytest.raises(OSError, match="open files"):
                await spill.add(file)
            assert file.fd == -1
            assert len(spill.snapshot()) == 1
            stored = await spill.store(arena, 0)
            await spill.load(stored, arena, 1)
