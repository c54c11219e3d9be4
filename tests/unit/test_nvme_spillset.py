# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 as a whole, on real files; on devices that fail or lie where that is what is tested."""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.nvme_harness import (
    CHUNK,
    DATA,
    MemfdArena,
    added,
    arena_of,
    as_nobody,
    limited,
    loop_device,
    mounted,
    needs_loop,
    spill_size,
)
from tierd.model import SpillOptions
from tierd.nvme import (
    ExtentError,
    NoSpace,
    SpillFile,
    SpillPathError,
    SpillSet,
    SpillWriteError,
    Stored,
    drain,
    open_spill_files,
    open_spill_set,
    probe,
)
from tierd.nvme.path import SpillPath
from tierd.nvme.ring import Abandoned
from tierd.nvme.transit import Transit

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


@asynccontextmanager
async def spill_over(directory: Path, *extents: int, chunk: int = CHUNK) -> AsyncIterator[SpillSet]:
    """A set over files of so many extents each, which are named 0, 1 and so on."""
    paths = [(str(directory / str(n)), spill_size(size, chunk)) for n, size in enumerate(extents)]
    async with open_spill_set(open_spill_files(paths, chunk), chunk=chunk) as spill:
        yield spill
    assert os.listdir(directory) == []


@pytest.fixture
def arena() -> Iterator[MemfdArena]:
    with arena_of(8) as arena:
        arena[0] = os.urandom(CHUNK)
        yield arena


def opened(path: Path, extents: int, **options: object) -> SpillFile:
    return SpillFile.open(str(path), spill_size(extents), CHUNK, options=SpillOptions(**options))  # type: ignore[arg-type]


def used(spill: SpillSet) -> list[int]:
    """Extents in use, by path."""
    return [path.used // CHUNK for path in spill.snapshot()]


def states(spill: SpillSet) -> list[str]:
    return [path.state for path in spill.snapshot()]


def corrupt(path: Path, stored: Stored) -> None:
    """Changes one bit of what is stored, behind everybody's back."""
    fd = os.open(path, os.O_RDWR)
    try:
        where = DATA + stored.index * CHUNK + 777
        byte = os.pread(fd, 1, where)[0]
        os.pwrite(fd, bytes([byte ^ 1]), where)
        os.fsync(fd)
    finally:
        os.close(fd)


async def test_what_is_stored_comes_back(tmp_path: Path, arena: MemfdArena) -> None:
    contents: dict[Stored, bytes] = {}
    async with spill_over(tmp_path, 20, 30) as spill:
        spill.add_arena(arena)
        assert (spill.total, spill.free) == (50, 50)
        before = [(path.written, path.read) for path in spill.snapshot()]
        slots = iter(range(8))

        async def store(count: int) -> None:
            slot = next(slots)
            for _ in range(count):
                arena[slot] = os.urandom(CHUNK)
                contents[await spill.store(arena, slot)] = arena[slot]

        async with trio.open_nursery() as nursery:
            for count in (6, 6, 6, 6, 6, 6, 7, 7):
                nursery.start_soon(store, count)
        assert len(contents) == 50
        assert spill.free == 0
        with pytest.raises(NoSpace, match="T3 is full"):
            await spill.store(arena, 0)

        async def load(slot: int, owned: list[Stored]) -> None:
            for stored in owned:
                await spill.load(stored, arena, slot)
                assert arena[slot] == contents[stored]
                spill.give_back(stored)

        async with trio.open_nursery() as nursery:
            for slot in range(8):
                nursery.start_soon(load, slot, list(contents)[slot::8])
        assert spill.free == 50
        moved = [
            ((path.written - written) // CHUNK, (path.read - read) // CHUNK)
            for path, (written, read) in zip(spill.snapshot(), before, strict=True)
        ]
        assert moved == [(20, 20), (30, 30)]
        spill.remove_arena(arena)


@pytest.mark.parametrize("chunk", [2 << 20, 16 << 20])
async def test_real_chunk_sizes(chunk: int, tmp_path: Path) -> None:
    content = os.urandom(chunk)
    with arena_of(2, chunk) as arena:
        async with spill_over(tmp_path, 2, chunk=chunk) as spill:
            with added(spill, arena):
                arena[0] = content
                stored = await spill.store(arena, 0)
                await spill.load(stored, arena, 1)
                assert arena[1] == content


@pytest.mark.parametrize("word", [bytes(8), b"\xff" * 8, b"\x00\x3c" * 4])
async def test_what_is_the_same_everywhere_needs_no_extent(
    word: bytes, tmp_path: Path, arena: MemfdArena
) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            arena[0] = word * (CHUNK // 8)
            stored = [await spill.store(arena, 0) for _ in range(3)]
            assert (used(spill), spill.same_filled) == ([0], 3)
            for each in stored:
                arena[1] = os.urandom(CHUNK)
                await spill.load(each, arena, 1)
                assert arena[1] == arena[0]
                spill.give_back(each)
            assert spill.same_filled == 0
            with pytest.raises(ExtentError):
                spill.give_back(stored[0])
            with pytest.raises(ExtentError):
                await spill.load(stored[0], arena, 1)


async def test_no_spill_path(arena: MemfdArena) -> None:
    async with open_spill_set(chunk=CHUNK) as spill:
        with added(spill, arena):
            assert (spill.total, spill.free, spill.snapshot()) == (0, 0, ())
            with pytest.raises(NoSpace, match="there is no spill path"):
                await spill.store(arena, 0)


async def test_what_was_given_back(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            spill.give_back(stored)
            with pytest.raises(ExtentError):
                spill.give_back(stored)
            with pytest.raises(ExtentError):
                await spill.load(stored, arena, 0)
            assert spill.free == 2


async def test_paths_are_mixed_by_their_weight(tmp_path: Path, arena: MemfdArena) -> None:
    async with open_spill_set(chunk=CHUNK) as spill:
        with added(spill, arena):
            for name, weight in (("0", 1), ("1", 3)):
                path = await spill.add(opened(tmp_path / name, 40, weight=weight))
                path.rate = 1e9  # whatever two files on one disk were measured to have
            for turn in range(1, 11):
                for _ in range(4):
                    await spill.store(arena, 0)
                assert used(spill) == [turn, 3 * turn]


async def test_paths_are_mixed_by_their_speed(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 40, 40) as spill:
        rates = [path.rate for path in spill.snapshot()]
        assert all(rate is not None and rate > 0 for rate in rates)
        with added(spill, arena):
            for n, rate in enumerate((3e9, 1e9)):
                path = spill.find(str(tmp_path / str(n)))
                assert path is not None
                path.rate = rate
            for _ in range(20):
                await spill.store(arena, 0)
            assert used(spill) == [15, 5]


async def test_what_is_given_back_during_a_transfer_is_free_after_it(
    tmp_path: Path, arena: MemfdArena
) -> None:
    with SpillSet(open_spill_files([(str(tmp_path / "0"), spill_size(2))], CHUNK), chunk=CHUNK) as spill:
        spill.add_arena(arena)
        async with trio.open_nursery() as pump:
            await pump.start(spill.run)
            stored = await spill.store(arena, 0)
            pump.cancel_scope.cancel()
        # No transfer ends while nothing drives the ring.
        spill._paths[0].ring._open = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spill.load, stored, arena, 1)
            nursery.start_soon(spill.load, stored, arena, 2)  # readers do not disturb each other
            await trio.testing.wait_all_tasks_blocked()
            spill.give_back(stored)
            assert spill.free == 1
            with pytest.raises(trio.BusyResourceError):
                spill.remove_arena(arena)
            with pytest.raises(trio.BusyResourceError):
                spill.close()
            spill._paths[0].ring._open = True
            async with trio.open_nursery() as pump:
                await pump.start(spill.run)
                while spill.free == 1:
                    await trio.lowlevel.checkpoint()
                pump.cancel_scope.cancel()
        assert arena[1] == arena[2] == arena[0]
        spill.remove_arena(arena)


async def test_a_cancelled_store_leaves_nothing(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            with trio.CancelScope() as scope:
                scope.cancel()
                await spill.store(arena, 0)
            assert scope.cancelled_caught
            assert spill.free == 1
            stored = await spill.store(arena, 0)
            await spill.load(stored, arena, 1)
            assert arena[1] == arena[0]


async def test_a_store_cancelled_midway_touches_nothing_afterwards(tmp_path: Path) -> None:
    chunk = 8 << 20
    with (
        arena_of(4, chunk) as arena,
        SpillSet(
            open_spill_files([(str(tmp_path / "0"), spill_size(4, chunk))], chunk), chunk=chunk
        ) as spill,
    ):
        spill.add_arena(arena)
        for slot in range(4):
            arena[slot] = os.urandom(8) + bytes([slot]) * (chunk - 8)
        async with trio.open_nursery() as pump:
            early: list[Stored] = []

            async def store(slot: int) -> None:
                early.append(await spill.store(arena, slot))

            async with trio.open_nursery() as nursery:
                for slot in range(4):
                    nursery.start_soon(store, slot)
                await trio.testing.wait_all_tasks_blocked()  # all is with the kernel, nothing reaped
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await pump.start(spill.run)
            assert spill.free == 4 - len(early)  # it may have been too late to cancel
            for each in early:
                spill.give_back(each)
            contents = [arena[slot] for slot in range(4)]
            stored = [await spill.store(arena, slot) for slot in range(4)]
            for each, content in zip(stored, contents, strict=True):
                await spill.load(each, arena, 0)
                assert arena[0] == content
                spill.give_back(each)
            pump.cancel_scope.cancel()
        spill.remove_arena(arena)


async def test_other_bytes_than_were_written_are_an_error(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            bad, good = await spill.store(arena, 0), await spill.store(arena, 0)
            corrupt(tmp_path / "0", bad)
            with pytest.raises(OSError, match="other bytes than were written") as caught:
                await spill.load(bad, arena, 1)
            assert caught.value.errno == errno.EIO
            assert caught.value.filename == str(tmp_path / "0")
            await spill.load(good, arena, 1)
            assert arena[1] == arena[0]
            spill.give_back(bad)
            spill.give_back(good)
            assert (spill.total, spill.free) == (1, 1)


async def test_a_bit_that_flipped_on_the_way_is_read_again(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            corrupt(tmp_path / "0", stored)
            read = SpillFile.read

            async def repaired(self: SpillFile, *args: object, **kwargs: object) -> None:
                await read(self, *args, **kwargs)  # type: ignore[arg-type]
                corrupt(tmp_path / "0", stored)

            monkeypatch.setattr(SpillFile, "read", repaired)
            await spill.load(stored, arena, 1)
            assert arena[1] == arena[0]
            assert spill.snapshot()[0].errors == 0


async def test_a_file_that_was_cut_is_an_error(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            stored = [await spill.store(arena, 0) for _ in range(2)]
            os.truncate(tmp_path / "0", DATA + CHUNK + 4096)
            await spill.load(stored[0], arena, 1)
            with pytest.raises(OSError, match="Input/output error"):
                await spill.load(stored[1], arena, 1)


async def test_a_failing_write_goes_elsewhere(tmp_path: Path, arena: MemfdArena) -> None:
    """Files may grow up to the third extent of each: what lies behind cannot be written."""
    async with spill_over(tmp_path, 4, 4) as spill:
        with added(spill, arena):
            stored = []
            with limited(resource.RLIMIT_FSIZE, DATA + 2 * CHUNK + 4096):
                for _ in range(4):
                    stored.append(await spill.store(arena, 0))
                with pytest.raises((SpillWriteError, NoSpace)):
                    await spill.store(arena, 0)
            assert spill.total in (4, 5)  # it gives up after three extents
            assert len({(each.path, each.index) for each in stored}) == 4
            for each in stored:
                await spill.load(each, arena, 1)
                assert arena[1] == arena[0]
                spill.give_back(each)


async def test_a_path_that_fails_is_set_aside_and_drained(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 8) as spill:
        with added(spill, arena):
            with limited(resource.RLIMIT_FSIZE, DATA + 3 * CHUNK):
                stored = [await spill.store(arena, 0) for _ in range(3)]
                with pytest.raises(SpillWriteError):
                    await spill.store(arena, 0)  # three extents in a row
            assert states(spill) == ["failed"]
            assert (spill.total, spill.free) == (0, 0)
            await spill.load(stored[0], arena, 1)  # what it holds can be had all the same
            with pytest.raises(NoSpace):
                await spill.store(arena, 0)
            await spill.add(opened(tmp_path / "1", 8))
            with trio.fail_after(60):
                while used(spill) != [0, 3]:
                    await trio.lowlevel.checkpoint()
            for each in stored:
                await spill.load(each, arena, 2)
                assert arena[2] == arena[0]


@needs_loop
@pytest.mark.parametrize("torn", [False, True])
async def test_a_device_that_fails_to_write(torn: bool, tmp_path: Path, arena: MemfdArena) -> None:
    """A loop device over a sparse file on a file system that is full after ten extents.

    Where it is full in the middle of an extent, the loop driver calls the torn write a success, as
    broken devices do: reading finds out.
    """
    page = 4096
    room = page + 10 * CHUNK + (CHUNK - page if torn else 0)
    with mounted(tmp_path / "small", "tmpfs", f"size={room}") as small:
        (small / "backing").touch()
        os.truncate(small / "backing", spill_size(20))
        with loop_device(small / "backing") as device:
            async with open_spill_set(open_spill_files([(device, None)], CHUNK), chunk=CHUNK) as spill:
                with added(spill, arena):
                    stored: list[Stored] = []
                    for _ in range(10 + torn):
                        stored.append(await spill.store(arena, 0))
                    with pytest.raises(SpillWriteError) as caught:
                        await spill.store(arena, 0)
                    assert caught.value.errno in (errno.EIO, errno.ENOSPC)
                    assert states(spill) == ["failed"]
                    for each in stored[:10]:
                        await spill.load(each, arena, 1)
                        assert arena[1] == arena[0]
                    for each in stored[10:]:
                        with pytest.raises(OSError, match="other bytes than were written"):
                            await spill.load(each, arena, 1)


# Paths that come and go


async def test_a_path_is_drained_while_it_is_used(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 16) as spill:
        with added(spill, arena):
            contents: dict[Stored, bytes] = {}
            for _ in range(16):
                arena[0] = os.urandom(CHUNK)
                contents[await spill.store(arena, 0)] = arena[0]
            old = spill.find(str(tmp_path / "0"))
            assert old is not None
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
            first, second = (spill.find(str(tmp_path / name)) for name in "01")
            assert first is not None
            assert second is not None
            spill.drain(first)
            async with trio.open_nursery() as nursery:

                async def remove() -> None:
                    with pytest.raises(ExtentError, match="is in use again"):
                        await spill.remove(first)

                nursery.start_soon(remove)
                spill.give_back(next(each for each in stored if each.path is second))
                with trio.fail_after(60):
                    while used(spill) != [3, 4]:
                        await trio.lowlevel.checkpoint()
                assert spill.restore(first)
            assert states(spill) == ["active", "active"]
            assert sum(used(spill)) == 7


async def test_given_back_while_it_is_moved(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            old = stored.path
            assert old is not None
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
            with trio.fail_after(60):
                while used(spill) != [0]:
                    await trio.lowlevel.checkpoint()


async def test_a_chunk_that_cannot_be_moved_stays_for_its_owner(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            bad, good = await spill.store(arena, 0), await spill.store(arena, 0)
            old = bad.path
            assert old is not None
            corrupt(tmp_path / "0", bad)
            await spill.add(opened(tmp_path / "1", 4))
            spill.drain(old)
            with trio.fail_after(60):
                while used(spill) != [1, 1]:
                    await trio.lowlevel.checkpoint()
            with pytest.raises(OSError, match="other bytes"):
                await spill.load(bad, arena, 1)
            await spill.load(good, arena, 1)
            assert arena[1] == arena[0]
            spill.give_back(bad)
            await spill.remove(old)


async def test_over_its_daily_budget_a_path_comes_last(tmp_path: Path, arena: MemfdArena) -> None:
    def spent() -> bool:
        return spill.budget_spent

    async with open_spill_set(chunk=CHUNK) as spill:
        with added(spill, arena):
            path = await spill.add(opened(tmp_path / "0", 8, daily_writes=2 * CHUNK, weight=1000))
            path.rate = 1e9  # not to be measured, which writes
            for _ in range(2):
                await spill.store(arena, 0)
            assert spent()
            await spill.add(opened(tmp_path / "1", 2))
            assert not spent()
            for _ in range(2):
                await spill.store(arena, 0)
            assert used(spill) == [2, 2]
            assert spent()
            await spill.store(arena, 0)  # what was promised a place gets one
            assert used(spill) == [3, 2]
            assert spill.snapshot()[0].written_today == 3 * CHUNK


async def test_encrypted_at_rest(tmp_path: Path, arena: MemfdArena) -> None:
    async with open_spill_set([opened(tmp_path / "0", 4, encrypt=True)], chunk=CHUNK) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            again = await spill.store(arena, 0)
            disk = (tmp_path / "0").read_bytes()
            first, second = (disk[DATA + n * CHUNK :][:CHUNK] for n in range(2))
            assert arena[0] not in (first, second)
            assert first != second
            for each in (stored, again):
                await spill.load(each, arena, 1)
                assert arena[1] == arena[0]
            corrupt(tmp_path / "0", again)
            with pytest.raises(OSError, match="other bytes"):
                await spill.load(again, arena, 1)


# What goes wrong meanwhile


@contextmanager
def gated(patch: pytest.MonkeyPatch, transfer: str, name: Path) -> Iterator[tuple[trio.Event, trio.Event]]:
    """Transfers of the path of this name wait: an event for the first that came, one to let them go on."""
    came, go_on = trio.Event(), trio.Event()
    real = getattr(SpillFile, transfer)

    async def wait(self: SpillFile, *args: object, **kwargs: object) -> None:
        if self.path == str(name):
            came.set()
            await go_on.wait()
        await real(self, *args, **kwargs)

    with patch.context() as inner:
        inner.setattr(SpillFile, transfer, wait)
        yield came, go_on


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not true():
            await trio.lowlevel.checkpoint()


def path_of(spill: SpillSet, name: Path) -> SpillPath:
    path = spill.find(str(name))
    assert path is not None
    return path


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
            stored = await spill.store(arena, 0)
            monkeypatch.setattr(Transit, "open", exhausted)
            await spill.add(opened(tmp_path / "1", 2))
            assert tries == 2  # neither could be measured
            assert stored.path is not None
            spill.drain(stored.path)
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


async def test_paths_that_stall_one_after_the_other_are_no_failed_writes(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = SpillFile.write
    tries = 0

    async def stalling(self: SpillFile, *args: object, **kwargs: object) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise Abandoned(errno.ETIMEDOUT, "the device has not answered in time")
        await write(self, *args, **kwargs)  # type: ignore[arg-type]

    async with spill_over(tmp_path, 4) as spill:
        with added(spill, arena):
            monkeypatch.setattr(SpillFile, "write", stalling)
            await spill.store(arena, 0)
            assert (spill.total, used(spill), states(spill)) == (4, [1], ["active"])


async def test_a_lack_of_memory_is_not_the_devices_fault(
    tmp_path: Path, arena: MemfdArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def exhausted(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    async with spill_over(tmp_path, 4) as spill:
        with added(spill, arena):
            stored = await spill.store(arena, 0)
            with monkeypatch.context() as patch:
                patch.setattr(SpillFile, "write", exhausted)
                patch.setattr(SpillFile, "read", exhausted)
                with pytest.raises(SpillWriteError):
                    await spill.store(arena, 0)
                for _ in range(3):
                    with pytest.raises(OSError, match="Cannot allocate memory"):
                        await spill.load(stored, arena, 1)
            assert (spill.total, spill.snapshot()[0].retired, states(spill)) == (4, 0, ["active"])
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


async def test_a_cancelled_store_is_not_counted_among_the_same_filled(
    tmp_path: Path, arena: MemfdArena
) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            arena[1] = bytes(CHUNK)
            with trio.CancelScope() as scope:
                scope.cancel()
                await spill.store(arena, 1)
            assert spill.same_filled == 0


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


# Files and arenas


def test_all_paths_or_none(tmp_path: Path) -> None:
    with pytest.raises(SpillPathError, match="does not exist and no size is given"):
        open_spill_files([(str(tmp_path / "good"), spill_size(1)), (str(tmp_path / "bad"), None)], CHUNK)
    assert os.listdir(tmp_path) == []


async def test_a_set_that_cannot_be_made_closes_its_files(tmp_path: Path) -> None:
    files = open_spill_files([(str(tmp_path / "spill"), spill_size(1))], CHUNK)
    with limited(resource.RLIMIT_NOFILE, 3), pytest.raises(OSError, match="open files"):
        SpillSet(files, chunk=CHUNK)
    assert files[0].fd == -1
    assert os.listdir(tmp_path) == []


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


async def test_arenas_are_added_once_and_fit(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 1, 1) as spill:
        with added(spill, arena), pytest.raises(ValueError, match="was added before"):
            spill.add_arena(arena)
        with arena_of(2, 2 * CHUNK, id=2) as other, pytest.raises(ValueError, match="has slots of"):
            spill.add_arena(other)
        with pytest.raises(ValueError, match="was not added"):
            await spill.store(arena, 0)
        with pytest.raises(ValueError, match="was not added"):
            spill.remove_arena(arena)


async def test_an_arena_that_is_gone_from_every_path(tmp_path: Path) -> None:
    async with spill_over(tmp_path, 1, 1) as spill:
        for number in range(3):
            with arena_of(1, id=number) as arena, added(spill, arena):
                assert arena.id == number
            # arena_of() could not unmap it if a ring still had it.


async def test_without_the_right_to_lock_memory(
    tmp_path: Path, arena: MemfdArena, caplog: pytest.LogCaptureFixture
) -> None:
    with limited(resource.RLIMIT_MEMLOCK, CHUNK):
        files = open_spill_files([(str(tmp_path / "spill"), spill_size(2))], CHUNK)
        with as_nobody():
            spill = SpillSet(files, chunk=CHUNK)
            with caplog.at_level(logging.WARNING):
                spill.add_arena(arena)
        assert "the limit on locked memory is 64.0 KiB; raise it with 'ulimit -l unlimited'" in caplog.text
        with spill:
            async with trio.open_nursery() as nursery:
                await nursery.start(spill.run)
                stored = await spill.store(arena, 0)
                await spill.load(stored, arena, 1)
                assert arena[1] == arena[0]
                nursery.cancel_scope.cancel()


async def test_a_spill_file_needs_a_ring(tmp_path: Path, arena: MemfdArena) -> None:
    with SpillFile.open(str(tmp_path / "spill"), spill_size(1), CHUNK) as file:
        with pytest.raises(RuntimeError, match="has no ring"):
            await file.read(0, arena, 0)
        with pytest.raises(ValueError, match="has no extent 1"):
            await file.read(1, arena, 0)
