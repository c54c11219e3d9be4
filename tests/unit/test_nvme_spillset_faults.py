# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 on devices that fail or lie: what is lost is an error of its owner, and the rest goes elsewhere."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from tests.unit.nvme_harness import (
    CHUNK,
    DATA,
    MemfdArena,
    added,
    limited,
    loop_device,
    mounted,
    needs_loop,
    spill_size,
)
from tests.unit.spillset_harness import corrupt, filled_arena, opened, spill_over, states, until, used
from tierd.nvme import NoSpace, SpillFile, SpillWriteError, Stored, open_spill_files, open_spill_set
from tierd.nvme.ring import Abandoned

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

arena = pytest.fixture(filled_arena)


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
            await until(lambda: used(spill) == [0, 3])
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
