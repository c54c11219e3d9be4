# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 on devices whose reads or writes fail, or that have no room."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.nvme_harness import CHUNK, MemfdArena, added, loop_device
from tests.vm.guest.faulty import (
    Chunks,
    break_extents,
    extent,
    opened,
    path_of,
    spill_over,
    states,
    until,
)
from tests.vm.guest.harness import (
    command,
    linear,
    null_blk,
    patiently,
    thin,
)
from tierd.nvme import NoSpace, SpillFile, SpillWriteError, Stored

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leaked_fds")]


@pytest.mark.parametrize("how", ["a part that fails", "a bad sector"])
async def test_who_owns_what_cannot_be_read_gets_the_error_alone(how: str, arena: MemfdArena) -> None:
    with null_blk(4) as (disk, attributes), linear(disk) as device:
        async with spill_over(device.path) as spill:
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                stored = await chunks.store(8)
                bad = stored[3]
                if how == "a bad sector":
                    sector = extent(bad.index) + 77
                    (attributes / "badblocks").write_text(f"+{sector}-{sector}")
                else:
                    break_extents(device, disk, bad.index, 1)
                for _ in range(2):  # not for good: three in a row, and the path has failed
                    assert (await chunks.fails(bad)).errno == errno.EIO
                await chunks.all_there(bad)
                [path] = spill.snapshot()
                assert (path.state, path.errors, path.retired) == ("active", 2, CHUNK)
                spill.give_back(bad)
                del chunks.content[bad]
                total = spill.total
                assert total == 47
                others = await chunks.store(spill.free)  # it is never used again
                assert bad.index not in {each.index for each in others}
                await chunks.all_there()


async def test_a_read_that_fails_once_is_repeated(
    arena: MemfdArena, disks: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SpillFile.read
    failed = []
    with linear(disks[0]) as device:

        async def healed(self: SpillFile, *args: object, **kwargs: object) -> None:
            try:
                await read(self, *args, **kwargs)  # type: ignore[arg-type]
            except OSError as error:
                failed.append(error.errno)
                device.reload("linear", disks[0], f"{disks[0]} 0")
                raise

        monkeypatch.setattr(SpillFile, "read", healed)
        async with spill_over(device.path) as spill:
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                await chunks.store(3)
                device.reload("error", disks[0], "")
                await chunks.all_there()
                assert failed == [errno.EIO]
                [path] = spill.snapshot()
                assert (path.state, path.errors, path.retired) == ("active", 0, 0)


async def test_when_all_reads_fail_the_path_is_set_aside_and_gives_later_what_it_can(
    arena: MemfdArena, disks: tuple[str, str]
) -> None:
    with linear(disks[0]) as device:
        async with spill_over(device.path) as spill:
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                stored = await chunks.store(8)
                device.reload("error", disks[0], "")
                for each in stored[:3]:
                    assert (await chunks.fails(each)).errno == errno.EIO
                assert states(spill) == ["failed"]
                assert (spill.total, spill.free) == (0, 0)
                with pytest.raises(NoSpace):
                    await chunks.store(1)
                device.reload("linear", disks[0], f"{disks[0]} 0")
                await chunks.all_there()
                await spill.add(opened(disks[1]))
                old = path_of(spill, device.path)
                await until(lambda: not old.extents.owned)
                await chunks.all_there()
                await spill.remove(old)


async def test_what_cannot_be_written_goes_elsewhere(arena: MemfdArena, disks: tuple[str, str]) -> None:
    with linear(disks[0]) as device:
        async with spill_over(device.path) as spill:
            with added(spill, arena):
                break_extents(device, disks[0], 2, 2)
                chunks = Chunks(spill, arena)
                stored = await chunks.store(8)
                assert {each.index for each in stored}.isdisjoint({2, 3})
                await chunks.all_there()
                [path] = spill.snapshot()
                assert (path.state, path.errors, path.retired) == ("active", 2, 2 * CHUNK)
                assert spill.total == 46


async def test_a_device_whose_writes_all_fail_is_emptied(arena: MemfdArena, disks: tuple[str, str]) -> None:
    with linear(disks[0]) as device:
        async with spill_over(device.path, disks[1]) as spill:
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                await chunks.store(16)
                bad = path_of(spill, device.path)
                assert bad.extents.owned
                device.reload("flakey", disks[0], f"{disks[0]} 0 0 1000 1 error_writes")
                await chunks.store(16)  # of which nobody notices anything
                assert states(spill) == ["failed", "active"]
                await until(lambda: not bad.extents.owned)
                await chunks.all_there()
                await spill.remove(bad)


@pytest.mark.parametrize("kind", ["thin device", "sparse file"])
async def test_a_device_that_has_less_room_than_it_says(kind: str, arena: MemfdArena, tmp_path: Path) -> None:
    with (
        null_blk(16) as (disk, _),
        null_blk(4, "other") as (other, _),
        overbooked(kind, disk, tmp_path) as device,
    ):
        async with spill_over(device) as spill:
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                before = spill.total
                with pytest.raises(SpillWriteError) as caught:
                    await chunks.store(before)
                assert caught.value.errno in (errno.ENOSPC, errno.EIO)
                assert states(spill) == ["failed"]
                assert 0 < len(chunks.content) < before
                # A loop device acknowledges what its file system takes back later, as bad disks do.
                lost = [] if kind == "thin device" else await unreadable(chunks)
                await chunks.all_there(*lost)
                await spill.add(opened(other))
                while len(chunks.content) < before - 8 and spill.free:
                    await chunks.store(1)
                await chunks.all_there(*lost)


async def unreadable(chunks: Chunks) -> list[Stored]:
    lost = []
    for stored in chunks.content:
        try:
            await chunks.load(stored)
        except OSError:
            lost.append(stored)
    return lost


@contextmanager
def overbooked(kind: str, disk: str, directory: Path) -> Iterator[str]:
    """A device of 8 MiB with room for about 2."""
    if kind == "thin device":
        with thin(disk, 2, 8) as device:
            yield device
        return
    command("mkfs.ext4", "-q", "-O", "^has_journal", disk)
    command("mount", disk, str(directory))
    try:
        found = os.statvfs(directory)
        with open(directory / "rest", "wb") as rest:
            os.posix_fallocate(rest.fileno(), 0, found.f_bavail * found.f_bsize - (2 << 20))
        with open(directory / "sparse", "wb") as sparse:
            sparse.truncate(8 << 20)
        with loop_device(directory / "sparse") as device:
            yield device
    finally:
        patiently("umount", str(directory))


async def test_when_it_is_full_nothing_is_lost(arena: MemfdArena, disks: tuple[str, str]) -> None:
    async with spill_over(*disks) as spill:
        with added(spill, arena):
            chunks = Chunks(spill, arena)
            await chunks.store(spill.total)
            for _ in range(3):
                with pytest.raises(NoSpace, match="T3 is full"):
                    await spill.store(arena, 0)
            await chunks.all_there()
            spill.give_back(chunks.content.popitem()[0])
            await chunks.store(1)
            await chunks.all_there()
