# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 as a whole, on real files; on devices that fail or lie where that is what is tested."""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.nvme_harness import (
    CHUNK,
    DATA,
    MemfdArena,
    arena_of,
    as_nobody,
    limited,
    loop_device,
    mounted,
    needs_loop,
    spill_size,
)
from tierd.nvme import (
    Extent,
    ExtentError,
    NoSpace,
    SpillFile,
    SpillPathError,
    SpillSet,
    SpillWriteError,
    open_spill_files,
    open_spill_set,
)

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
        yield arena


@contextmanager
def added(spill: SpillSet, arena: MemfdArena) -> Iterator[None]:
    spill.add_arena(arena)
    try:
        yield
    finally:
        spill.remove_arena(arena)


def corrupt(path: Path, extent: Extent) -> None:
    """Changes one bit of what the extent holds, behind everybody's back."""
    fd = os.open(path, os.O_RDWR)
    try:
        where = DATA + extent.index * CHUNK + 777
        byte = os.pread(fd, 1, where)[0]
        os.pwrite(fd, bytes([byte ^ 1]), where)
        os.fsync(fd)
    finally:
        os.close(fd)


async def test_what_is_stored_comes_back(tmp_path: Path, arena: MemfdArena) -> None:
    contents: dict[Extent, bytes] = {}
    async with spill_over(tmp_path, 20, 30) as spill:
        spill.add_arena(arena)
        assert (spill.total, spill.free) == (50, 50)
        slots = iter(range(8))

        async def store(count: int) -> None:
            slot = next(slots)
            for _ in range(count):
                arena[slot] = os.urandom(CHUNK)
                extent = spill.take()
                await spill.store(extent, arena, slot)
                contents[extent] = arena[slot]

        async with trio.open_nursery() as nursery:
            for count in (6, 6, 6, 6, 6, 6, 7, 7):
                nursery.start_soon(store, count)
        assert len(contents) == 50
        assert spill.free == 0

        async def load(slot: int, extents: list[Extent]) -> None:
            for extent in extents:
                await spill.load(extent, arena, slot)
                assert arena[slot] == contents[extent]
                spill.give_back(extent)

        async with trio.open_nursery() as nursery:
            for slot in range(8):
                nursery.start_soon(load, slot, list(contents)[slot::8])
        assert spill.free == 50
        assert [(path.written, path.read) for path in spill.snapshot()] == [
            (20 * CHUNK, 20 * CHUNK),
            (30 * CHUNK, 30 * CHUNK),
        ]
        spill.remove_arena(arena)


@pytest.mark.parametrize("chunk", [2 << 20, 16 << 20])
async def test_real_chunk_sizes(chunk: int, tmp_path: Path) -> None:
    content = os.urandom(chunk)
    with arena_of(2, chunk) as arena:
        async with spill_over(tmp_path, 2, chunk=chunk) as spill:
            with added(spill, arena):
                arena[0] = content
                extent = spill.take()
                await spill.store(extent, arena, 0)
                await spill.load(extent, arena, 1)
                assert arena[1] == content


async def test_no_spill_path(arena: MemfdArena) -> None:
    async with open_spill_set(chunk=CHUNK) as spill:
        with added(spill, arena):
            assert (spill.total, spill.free, spill.snapshot()) == (0, 0, ())
            with pytest.raises(NoSpace, match="there is no spill path"):
                spill.take()


async def test_a_full_set(tmp_path: Path) -> None:
    async with spill_over(tmp_path, 1, 1) as spill:
        first, second = spill.take(), spill.take()
        with pytest.raises(NoSpace, match="T3 is full"):
            spill.take()
        spill.give_back(first)
        assert spill.take().path == first.path != second.path


async def test_paths_are_mixed_by_their_room(tmp_path: Path) -> None:
    async with spill_over(tmp_path, 10, 30) as spill:
        for _ in range(10):
            four = [spill.take().path for _ in range(4)]
            assert four.count(0) == 1
        used = [path.used // CHUNK for path in spill.snapshot()]
        assert used == [10, 30]


async def test_an_extent_that_is_not_the_callers(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            extent = spill.take()
            await spill.store(extent, arena, 0)
            spill.give_back(extent)
            with pytest.raises(ExtentError):
                spill.give_back(extent)
            with pytest.raises(ExtentError):
                await spill.load(extent, arena, 0)
            with pytest.raises(ExtentError):
                await spill.store(extent, arena, 0)
            with pytest.raises(ExtentError, match="on no spill path"):
                spill.give_back(Extent(1, 0, 1))
            assert spill.free == 2


async def test_an_extent_that_holds_nothing(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            extent = spill.take()
            await spill.store(extent, arena, 0)
            spill.give_back(extent)
            again = spill.take()
            with pytest.raises(OSError, match="nothing is stored") as caught:
                await spill.load(again, arena, 0)
            assert caught.value.errno == errno.EIO


async def test_nothing_is_given_back_during_a_transfer(tmp_path: Path, arena: MemfdArena) -> None:
    with SpillSet(open_spill_files([(str(tmp_path / "0"), spill_size(1))], CHUNK), chunk=CHUNK) as spill:
        spill.add_arena(arena)
        extent = spill.take()
        async with trio.open_nursery() as pump:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spill.store, extent, arena, 0)
                await trio.testing.wait_all_tasks_blocked()  # no transfer ends before run() starts
                with pytest.raises(trio.BusyResourceError):
                    spill.give_back(extent)
                with pytest.raises(trio.BusyResourceError):
                    await spill.store(extent, arena, 1)
                with pytest.raises(OSError, match="nothing is stored"):
                    await spill.load(extent, arena, 1)
                with pytest.raises(trio.BusyResourceError):
                    spill.remove_arena(arena)
                with pytest.raises(trio.BusyResourceError):
                    spill.close()
                await pump.start(spill.run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spill.load, extent, arena, 2)
                nursery.start_soon(spill.load, extent, arena, 3)  # readers do not disturb each other
            assert arena[2] == arena[3] == arena[0]
            spill.give_back(extent)
            pump.cancel_scope.cancel()
        spill.remove_arena(arena)


async def test_a_cancelled_store_leaves_the_extent_empty(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 1) as spill:
        with added(spill, arena):
            extent = spill.take()
            await spill.store(extent, arena, 0)
            with trio.CancelScope() as scope:
                scope.cancel()
                await spill.store(extent, arena, 0)
            assert scope.cancelled_caught
            with pytest.raises(OSError, match="nothing is stored"):
                await spill.load(extent, arena, 0)
            await spill.store(extent, arena, 0)
            await spill.load(extent, arena, 1)
            spill.give_back(extent)
            assert spill.free == 1


async def test_a_store_cancelled_midway_touches_nothing_afterwards(tmp_path: Path) -> None:
    chunk = 8 << 20
    with (
        arena_of(4, chunk) as arena,
        SpillSet(
            open_spill_files([(str(tmp_path / "0"), spill_size(4, chunk))], chunk), chunk=chunk
        ) as spill,
    ):
        spill.add_arena(arena)
        extents = [spill.take() for _ in range(4)]
        async with trio.open_nursery() as pump:
            async with trio.open_nursery() as nursery:
                for slot, extent in enumerate(extents):
                    nursery.start_soon(spill.store, extent, arena, slot)
                await trio.testing.wait_all_tasks_blocked()  # all is with the kernel, nothing reaped
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await pump.start(spill.run)
            for slot, extent in enumerate(extents):
                arena[slot] = bytes([slot]) * chunk
                await spill.store(extent, arena, slot)
            for slot, extent in enumerate(extents):
                await spill.load(extent, arena, 0)
                assert arena[0] == bytes([slot]) * chunk
                spill.give_back(extent)
            pump.cancel_scope.cancel()
        spill.remove_arena(arena)


async def test_other_bytes_than_were_written_are_an_error(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            arena[0] = os.urandom(CHUNK)
            bad, good = spill.take(), spill.take()
            await spill.store(bad, arena, 0)
            await spill.store(good, arena, 0)
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
            assert spill.take().index == good.index


async def test_a_file_that_was_cut_is_an_error(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 2) as spill:
        with added(spill, arena):
            extents = [spill.take(), spill.take()]
            for extent in extents:
                await spill.store(extent, arena, 0)
            os.truncate(tmp_path / "0", DATA + CHUNK + 4096)
            await spill.load(extents[0], arena, 1)
            with pytest.raises(OSError, match="Input/output error"):
                await spill.load(extents[1], arena, 1)


async def test_a_failing_write_retires_the_extent(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 4) as spill:
        with added(spill, arena):
            arena[0] = os.urandom(CHUNK)
            extents = sorted((spill.take() for _ in range(4)), key=lambda extent: extent.index)
            with limited(resource.RLIMIT_FSIZE, DATA + 2 * CHUNK + 4096):
                for extent in extents[:2]:
                    await spill.store(extent, arena, 0)
                for extent in extents[2:]:
                    with pytest.raises(SpillWriteError) as caught:
                        await spill.store(extent, arena, 0)
                    assert caught.value.errno == errno.EFBIG
                    assert caught.value.filename == str(tmp_path / "0")
            for extent in extents:
                spill.give_back(extent)
            assert (spill.total, spill.free) == (2, 2)


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
                    arena[0] = os.urandom(CHUNK)
                    stored: list[Extent] = []
                    errors: list[int | None] = []
                    for _ in range(20):
                        extent = spill.take()
                        try:
                            await spill.store(extent, arena, 0)
                            stored.append(extent)
                        except SpillWriteError as error:
                            errors.append(error.errno)
                            spill.give_back(extent)
                    assert len(stored) == spill.total == 10 + torn
                    assert set(errors) <= {errno.EIO, errno.ENOSPC}
                    for extent in stored[:10]:
                        await spill.load(extent, arena, 1)
                        assert arena[1] == arena[0]
                    for extent in stored[10:]:
                        with pytest.raises(OSError, match="other bytes than were written"):
                            await spill.load(extent, arena, 1)
                    for extent in stored:
                        spill.give_back(extent)
                    assert spill.total == spill.free == 10


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


async def test_arenas_are_added_once_and_fit(tmp_path: Path, arena: MemfdArena) -> None:
    async with spill_over(tmp_path, 1, 1) as spill:
        with added(spill, arena), pytest.raises(ValueError, match="was added before"):
            spill.add_arena(arena)
        with arena_of(2, 2 * CHUNK, id=2) as other, pytest.raises(ValueError, match="has slots of"):
            spill.add_arena(other)
        extent = spill.take()
        with pytest.raises(ValueError, match="was not added"):
            await spill.store(extent, arena, 0)
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
                arena[0] = os.urandom(CHUNK)
                extent = spill.take()
                await spill.store(extent, arena, 0)
                await spill.load(extent, arena, 1)
                assert arena[1] == arena[0]
                nursery.cancel_scope.cancel()


async def test_a_spill_file_needs_a_ring(tmp_path: Path, arena: MemfdArena) -> None:
    with SpillFile.open(str(tmp_path / "spill"), spill_size(1), CHUNK) as file:
        with pytest.raises(RuntimeError, match="has no ring"):
            await file.read(0, arena, 0)
        with pytest.raises(ValueError, match="has no extent 1"):
            await file.read(1, arena, 0)
