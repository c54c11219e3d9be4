# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 as a whole, on real files: what is stored, where it goes, and what comes back."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.nvme_harness import CHUNK, DATA, MemfdArena, added, arena_of, as_nobody, limited, spill_size
from tests.unit.spillset_harness import corrupt, filled_arena, opened, path_of, spill_over, used
from tierd.nvme import (
    ExtentError,
    NoSpace,
    SpillFile,
    SpillPathError,
    SpillSet,
    Stored,
    open_spill_files,
    open_spill_set,
)

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

arena = pytest.fixture(filled_arena)


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
                path_of(spill, tmp_path / str(n)).rate = rate
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
