# SPDX-License-Identifier: GPL-2.0-or-later
"""Several devices at once, and the ways to drive them that only real queues have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio

from tests.unit.nvme_harness import CHUNK, MemfdArena, arena_of
from tests.vm.guest.harness import command, mapped, null_blk
from tierd.model import Poll, SpillOptions
from tierd.nvme import SpillFile, SpillPathError, SpillSet, Stored, open_spill_set
from tierd.nvme.ring import Ring
from tierd.nvme.ringsetup import IOPOLL, SQPOLL

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leaked_fds")]

SLOTS = 4


@pytest.fixture
def arena() -> Iterator[MemfdArena]:
    with arena_of(SLOTS) as arena:
        yield arena


def opened(device: str, **options: object) -> SpillFile:
    return SpillFile.open(device, None, CHUNK, options=SpillOptions(**options))  # type: ignore[arg-type]


async def there_and_back(spill: SpillSet, arena: MemfdArena, count: int) -> list[int]:
    """Several at once are stored, and all are right; extents in use by path, at the end."""
    content: dict[Stored, bytes] = {}
    spill.add_arena(arena)

    async def store(slot: int) -> None:
        for _ in range(count // SLOTS):
            data = arena[slot] = os.urandom(CHUNK)
            content[await spill.store(arena, slot)] = data

    async def load(slot: int) -> None:
        for stored in list(content)[slot::SLOTS]:
            await spill.load(stored, arena, slot)
            assert arena[slot] == content[stored]

    for task in (store, load):
        async with trio.open_nursery() as nursery:
            for slot in range(SLOTS):
                nursery.start_soon(task, slot)
    spill.remove_arena(arena)
    return [path.used // CHUNK for path in spill.snapshot()]


@pytest.mark.parametrize("delays", [(300, 100), (300, 300, 300, 100)], ids=str)
async def test_devices_get_chunks_by_their_measured_speed(delays: tuple[int, ...], arena: MemfdArena) -> None:
    with ExitStack() as stack:
        # Milliseconds a request: far more than this guest needs itself, on a host that is busy too.
        disks = []
        for number, delay in enumerate(delays):
            disk, _ = stack.enter_context(null_blk(8, f"disk{number}"))
            slow = stack.enter_context(mapped("delay", disk, f"{disk} 0 {delay}", name=f"slow{number}"))
            disks.append(slow.path)
        async with open_spill_set(map(opened, disks), chunk=CHUNK) as spill:
            rates = [path.rate or 0 for path in spill.snapshot()]
            shares = await there_and_back(spill, arena, 64)
        print(rates, shares)
        assert sum(shares) == 64
        speeds = [1 / delay for delay in delays]
        for share, rate, speed in zip(shares, rates, speeds, strict=True):
            assert share == pytest.approx(64 * rate / sum(rates), abs=1)
            assert share == pytest.approx(64 * speed / sum(speeds), rel=0.5)


async def test_a_file_system_is_overwritten_only_by_force(arena: MemfdArena) -> None:
    with null_blk(8) as (disk, _):
        command("mkfs.ext4", "-q", disk)
        with pytest.raises(SpillPathError, match="holds something else"):
            opened(disk)
        command("fsck.ext4", "-fn", disk)
        async with open_spill_set([SpillFile.open(disk, None, CHUNK, force=True)], chunk=CHUNK) as spill:
            assert await there_and_back(spill, arena, 8) == [8]
        async with open_spill_set([opened(disk)], chunk=CHUNK) as spill:  # it is ours now
            assert await there_and_back(spill, arena, 8) == [8]


@pytest.mark.parametrize(("poll", "flag"), [("io", IOPOLL), ("sq", SQPOLL)])
async def test_an_nvme_device_that_is_polled(poll: Poll, flag: int, arena: MemfdArena) -> None:
    async with open_spill_set([opened("/dev/tier0", poll=poll)], chunk=CHUNK) as spill:
        ring: Ring = spill._paths[0].ring
        assert ring.statistics().setup_flags & flag
        assert await there_and_back(spill, arena, 32) == [32]
