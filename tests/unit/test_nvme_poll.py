# SPDX-License-Identifier: GPL-2.0-or-later
"""Rings that poll: by a thread of the kernel's, and for completions where the device here can."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.ring_harness import MIB, PAGE, FullPipe, Pipe, mapped_memory, round_trips, scratch
from tierd.nvme import ringsetup
from tierd.nvme.errors import RingError
from tierd.nvme.ring import Abandoned, Ring, RingBuffer, RingFile, open_ring

pytestmark = pytest.mark.usefixtures("no_leaked_fds")
memory = pytest.fixture(mapped_memory)
settled = trio.testing.wait_all_tasks_blocked


# More requests, of more pieces, than the rings have entries.
COUNT, LENGTH = 20, 3 * 64 * PAGE


@pytest.mark.parametrize("setup", range(len(ringsetup.SQ_SETUPS)))
async def test_a_thread_of_the_kernels_submits(
    setup: int, tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ringsetup, "SQ_SETUPS", ringsetup.SQ_SETUPS[setup:])
    with scratch(tmp_path, os.O_DIRECT) as fd:
        async with open_ring(entries=3, piece=64 * PAGE, poll="sq") as ring:
            assert ring.statistics().setup_flags & ringsetup.SQPOLL
            await round_trips(ring, fd, memory, COUNT, LENGTH)


async def test_the_kernels_thread_is_woken_when_it_sleeps(
    tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ringsetup, "SQ_IDLE_MS", 1)
    with scratch(tmp_path, os.O_DIRECT) as fd:
        async with open_ring(poll="sq") as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            for _ in range(3):
                await trio.sleep(0.02)
                await ring.write(file, buffer, 0, MIB, 0)


async def write_one(ring: Ring, file: RingFile, buffer: RingBuffer, events: list[str]) -> None:
    try:
        await ring.write(file, buffer, 0, PAGE, 0, late=lambda: events.append("late"))
    except Abandoned:
        events.append("abandoned")


async def test_what_is_abandoned_and_removed_at_once_goes_nowhere_else(memory: memoryview) -> None:
    """The kernel's thread may not have looked at it yet."""
    memory[:PAGE] = b"a" * PAGE
    other = mmap.mmap(-1, PAGE)
    for _ in range(20):
        events: list[str] = []
        async with open_ring(files=1, buffers=1, poll="sq") as ring:
            buffer = ring.add_buffer(memory)
            with FullPipe(ring) as pipe:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write_one, ring, pipe.file, buffer, events)
                    await settled()
                    ring.abandon_writes(trio.current_time() + 1)
                ring.remove_file(pipe.file)
                ring.remove_buffer(buffer)
                with Pipe(ring):
                    buffer = ring.add_buffer(memoryview(other))
                    found = pipe.drain()
                    while ring.statistics().abandoned:
                        await settled()
                    await settled()
                    assert events == ["abandoned", "late"]
                    found += pipe.drain()
                    assert found == bytes(pipe.capacity) + b"a" * PAGE
                ring.remove_buffer(buffer)
    other.close()


@pytest.mark.parametrize("flags", [os.O_DIRECT, 0])
async def test_files_that_cannot_be_polled(flags: int, memory: memoryview) -> None:
    """Memory has no interrupts, and nothing to poll either."""
    with scratch(Path("/dev/shm"), flags) as fd:
        async with open_ring(poll="io") as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            with pytest.raises(RingError, match=r"nvme\.poll_queues=2") as caught:
                await ring.write(file, buffer, 0, MIB, 0)
            assert caught.value.errno == errno.EOPNOTSUPP
            assert ring.statistics().requests == 0


def test_whether_a_file_can_be_polled_is_found_out_when_it_is_opened(tmp_path: Path) -> None:
    with scratch(Path("/dev/shm"), os.O_DIRECT) as fd, Ring(poll="io") as ring:
        file = ring.add_file(fd)
        with pytest.raises(RingError, match=r"nvme\.poll_queues=2"):
            ring.check_polling(file)


async def test_polling_for_completions(tmp_path: Path, memory: memoryview) -> None:
    refused = False
    with scratch(tmp_path, os.O_DIRECT) as fd:
        async with open_ring(entries=3, piece=64 * PAGE, poll="io") as ring:
            assert ring.statistics().setup_flags & ringsetup.IOPOLL
            try:
                await round_trips(ring, fd, memory, COUNT, LENGTH)
            except* RingError:
                refused = True
    if refused:
        pytest.skip("the device has no queues for polling: polling for completions is NOT tested")


async def test_no_fdatasync_where_completions_are_polled_for(tmp_path: Path, memory: memoryview) -> None:
    with scratch(tmp_path, os.O_DIRECT) as fd:
        async with open_ring(poll="io") as ring:
            with pytest.raises(ValueError, match="polls for completions"):
                await ring.write(ring.add_file(fd), ring.add_buffer(memory), 0, PAGE, 0, sync=True)
