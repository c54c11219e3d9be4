# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 on devices that do not answer."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio
import trio.testing

from tests.unit.nvme_harness import CHUNK, MemfdArena, added, as_nobody, limited
from tests.vm.guest.faulty import (
    DEADLINE,
    SLOTS,
    Chunks,
    opened,
    path_of,
    spill_over,
    states,
    until,
)
from tests.vm.guest.harness import (
    Mapped,
    linear,
    mapped,
)
from tierd.nvme import SpillSet, Stored

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leaked_fds")]


async def test_a_device_that_stalls_is_passed_over_until_it_answers(
    arena: MemfdArena, disks: tuple[str, str]
) -> None:
    with linear(disks[0]) as device:
        async with (
            spill_over(device.path, disks[1], stalls=[device.path]) as spill,
            trio.open_nursery() as nursery,
        ):
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                early = await chunks.store(8)
                path = path_of(spill, device.path)
                waiting = [each for each in early if each.path is path]
                assert waiting
                free = path.extents.free
                device.suspend()
                async with trio.open_nursery() as writers:
                    for slot in range(2, SLOTS):
                        writers.start_soon(chunks.store_from, slot)
                # All are stored, and on the other: what the device was asked to write it may yet write.
                assert states(spill) == ["stalled", "active"]
                late = list(chunks.content)[8:]
                assert {each.path for each in late} == {path_of(spill, disks[1])}
                kept = free - path.extents.free
                assert kept > 0
                assert path.under_way == kept
                for slot in range(2, SLOTS):
                    arena[slot] = os.urandom(CHUNK)  # others' bytes by now
                read: list[Stored] = []

                async def load(stored: Stored) -> None:
                    await chunks.load(stored)
                    read.append(stored)

                nursery.start_soon(load, waiting[0])
                await until(lambda: path.under_way > kept)
                await chunks.store(4)  # at once, and not by way of a deadline: see the next line
                assert path.extents.free == free - kept
                for each in late:
                    await chunks.load(each, 0)
                assert read == []

                device.resume()
                await until(lambda: states(spill) == ["active", "active"] and path.extents.free == free)
                await until(lambda: read == waiting[:1])
                assert path.under_way == 0
                reused = await chunks.store(spill.free)  # those that were written late among them
                assert path in {each.path for each in reused}
                await chunks.all_there()


async def test_a_write_does_not_wander_for_ever(arena: MemfdArena, disks: tuple[str, str]) -> None:
    """Two devices stall in turn, so that there is always one that seems the better choice."""
    with linear(disks[0]) as first, mapped("linear", disks[1], f"{disks[1]} 0", name="second") as second:
        async with (
            spill_over(first.path, second.path, stalls=[first.path, second.path]) as spill,
            trio.open_nursery() as nursery,
        ):
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                devices = {path_of(spill, device.path): device for device in (first, second)}
                for device in devices.values():
                    device.suspend()
                nursery.start_soon(chunks.store_from, 2)
                await until(lambda: states(spill) == ["stalled", "stalled"])  # it has been on both
                for _ in range(3):
                    idle = next(path for path in devices if path.ring.oldest is None)
                    devices[idle].resume()
                    await until(lambda idle=idle: not idle.under_way)  # type: ignore[misc]
                    devices[idle].suspend()
                    await until(lambda idle=idle: not idle.health.stalled)  # type: ignore[misc]
                    await trio.sleep(2 * DEADLINE)  # to have it go there, or fail
                for device in devices.values():
                    device.resume()
                await until(lambda: len(chunks.content) == 1)
                await chunks.all_there()
                assert [path.errors for path in spill.snapshot()] == [0, 0]


async def test_the_last_extents_are_waited_for_while_a_device_has_them(
    arena: MemfdArena, disks: tuple[str, str]
) -> None:
    """What was promised a place gets it, though an abandoned write keeps one for a while."""
    with linear(disks[0]) as device:
        async with (
            spill_over(device.path, disks[1], stalls=[device.path]) as spill,
            trio.open_nursery() as nursery,
        ):
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                path, other = path_of(spill, device.path), path_of(spill, disks[1])
                stored = await chunks.store(spill.free)
                for owner in (path, other):
                    one = next(each for each in stored if each.path is owner)
                    spill.give_back(one)
                    del chunks.content[one]
                path.credit, other.credit = 1e12, 0.0  # the next one goes there
                device.suspend()
                await chunks.store_from(2)
                assert (path.extents.free, other.extents.free) == (0, 0)
                assert path.under_way == 1
                nursery.start_soon(chunks.store_from, 3)
                await trio.testing.wait_all_tasks_blocked()
                device.resume()
                await until(lambda: len(chunks.content) == spill.total)
                await chunks.all_there()


async def test_a_stalled_device_is_removed_while_others_go_on(
    arena: MemfdArena, disks: tuple[str, str]
) -> None:
    with linear(disks[0]) as device:
        async with spill_over(disks[1]) as spill:
            with added(spill, arena):
                path = await spill.add(opened(device.path, deadline=5))
                chunks = Chunks(spill, arena)
                device.suspend()
                spill.drain(path)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(spill.remove, path)
                    await until(lambda: len(spill.snapshot()) == 1)
                    await chunks.store(4)
                    await chunks.all_there()
                    device.resume()


@contextmanager
def suspended(device: Mapped) -> Iterator[None]:
    """The device answers nothing inside, where nobody may wait for it."""
    waited_for = []

    def wake() -> None:
        waited_for.append(device)
        device.resume()

    timer = threading.Timer(20, wake)  # what waits in the kernel cannot be ended in any other way
    timer.start()
    try:
        device.suspend()
        yield
    finally:
        timer.cancel()
        timer.join()
        device.resume()
    assert not waited_for


@pytest.mark.parametrize("what", ["load", "store", "drain", "nothing"])
async def test_it_ends_while_a_device_stalls(what: str, arena: MemfdArena, disks: tuple[str, str]) -> None:
    with ExitStack() as stack:
        device = stack.enter_context(linear(disks[0]))
        async with spill_over(device.path, stalls=[device.path]) as spill:
            with added(spill, arena):
                chunks = Chunks(spill, arena)
                [stored] = await chunks.store(1)
                path = path_of(spill, device.path)
                if what == "drain":
                    await spill.add(opened(disks[1]))
                stack.enter_context(suspended(device))
                async with trio.open_nursery() as nursery:
                    if what == "load":
                        nursery.start_soon(spill.load, stored, arena, 1)
                    elif what == "store":
                        nursery.start_soon(chunks.store_from, 0)
                    elif what == "drain":
                        spill.drain(path)
                    await until(lambda: path.under_way > 0 or what == "nothing")
                    nursery.cancel_scope.cancel()


async def test_what_is_not_locked_in_memory_stays_until_the_device_is_done(
    arena: MemfdArena, disks: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its pages are looked up late, so they must not become somebody else's meanwhile."""
    with linear(disks[0]) as device:
        file = opened(device.path, DEADLINE)
        with limited(resource.RLIMIT_MEMLOCK, CHUNK):
            with as_nobody():  # the kernel asks who makes the ring
                spill = SpillSet([file], chunk=CHUNK)
            spill.add_arena(arena)
        assert "raise it with 'ulimit -l unlimited'" in caplog.text
        with spill:
            async with trio.open_nursery() as pump:
                await pump.start(spill.run)
                chunks = Chunks(spill, arena)
                [stored] = await chunks.store(1)
                device.suspend()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stalls_then_resumes, spill, device, arena)
                    nursery.start_soon(spill.load, stored, arena, 1)
                    await until(lambda: path_of(spill, device.path).under_way > 0)
                    nursery.cancel_scope.cancel()
                await chunks.all_there()
                spill.remove_arena(arena)
                pump.cancel_scope.cancel()


async def stalls_then_resumes(spill: SpillSet, device: Mapped, arena: MemfdArena) -> None:
    with trio.CancelScope(shield=True):
        await until(lambda: states(spill) == ["stalled"])
        with pytest.raises(trio.BusyResourceError):
            spill.remove_arena(arena)
        device.resume()
