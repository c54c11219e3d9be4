# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that do not wait for a device that stalls: a pipe that nobody serves until the test does."""

from __future__ import annotations

import errno
import gc
import mmap
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.ring_harness import PAGE, FullPipe, Pipe, mapped_memory, scratch
from tierd.nvme.ring import Abandoned, Ring, RingBuffer, RingFile, open_ring
from tierd.nvme.ringtables import write_within

pytestmark = pytest.mark.usefixtures("no_leaked_fds")
memory = pytest.fixture(mapped_memory)
settled = trio.testing.wait_all_tasks_blocked


class Caller:
    """One call and all that became of it, in order."""

    def __init__(self, ring: Ring, file: RingFile, buffer: RingBuffer) -> None:
        self.ring, self.file, self.buffer = ring, file, buffer
        self.events: list[str] = []
        self.owed: bool | None = None  # what the ring said when the call had ended

    async def write(self, length: int = PAGE) -> None:
        await self._call(True, length)

    async def read(self, length: int = PAGE) -> None:
        await self._call(False, length)

    async def _call(self, write: bool, length: int) -> None:
        call = self.ring.write if write else self.ring.read
        try:
            await call(self.file, self.buffer, 0, length, 0, late=self._late)
        except Abandoned as error:
            self.events.append("abandoned" if error.errno == errno.ETIMEDOUT else str(error))
        except trio.ClosedResourceError:
            self.events.append("closed")
        except trio.Cancelled:
            self.events.append("cancelled")
            raise
        else:
            self.events.append("done")
        finally:
            self.owed = self.ring.owes(self._late)

    def _late(self) -> None:
        self.events.append("late")


async def test_a_write_that_stalls_is_abandoned(
    memory: memoryview, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ring(entries=2) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        memory[:PAGE] = b"a" * PAGE
        with FullPipe(ring) as pipe:
            old, young = Caller(ring, pipe.file, buffer), Caller(ring, pipe.file, buffer)
            assert ring.statistics().requests == 0
            begun = trio.current_time()
            nursery.start_soon(old.write)
            await trio.sleep(1)
            nursery.start_soon(young.write)
            await settled()
            assert ring.oldest == begun
            assert ring.abandon_writes(begun) == 0
            assert ring.abandon_writes(begun + 0.5) == 1
            assert ring.oldest == begun + 1
            await settled()
            assert (old.events, young.events) == (["abandoned"], [])
            assert (buffer.busy, pipe.file.busy) == (1, 1)
            assert (ring.statistics().requests, ring.statistics().abandoned) == (1, 1)
            assert len(pipe.drain()) == pipe.capacity
            await settled()
            assert old.events == ["abandoned", "late"]
            assert young.events == ["done"]
            assert pipe.drain() == b"a" * 2 * PAGE  # what the kernel has, it keeps
        assert ring.statistics().abandoned == 0
        assert ring.oldest is None


async def test_no_further_piece_of_it_is_sent(memory: memoryview) -> None:
    async with open_ring(entries=2, piece=PAGE) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        memory[: 4 * PAGE] = b"a" * 4 * PAGE
        with FullPipe(ring) as pipe:
            caller = Caller(ring, pipe.file, buffer)
            nursery.start_soon(caller.write, 4 * PAGE)
            await settled()
            ring.abandon_writes(trio.current_time() + 1)
            await settled()
            pipe.drain()
            await settled()
            assert caller.events == ["abandoned", "late"]
            assert pipe.drain() == b"a" * 2 * PAGE


async def test_a_request_of_which_nothing_was_sent_is_late_at_once(memory: memoryview) -> None:
    async with open_ring(entries=2, piece=PAGE) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe, FullPipe(ring) as full:
            nursery.start_soon(Caller(ring, pipe.file, buffer).read, 2 * PAGE)  # both entries
            await settled()
            caller = Caller(ring, full.file, buffer)
            nursery.start_soon(caller.write)
            await settled()
            ring.abandon_writes(trio.current_time() + 1)
            await settled()
            assert caller.events == ["abandoned", "late"]
            pipe.send(bytes(2 * PAGE))


async def test_calls_that_wait_for_an_entry_are_abandoned_too(memory: memoryview) -> None:
    async with open_ring(entries=1) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with FullPipe(ring) as pipe:
            first, second, third = (Caller(ring, pipe.file, buffer) for _ in range(3))
            nursery.start_soon(first.write)
            await settled()
            nursery.start_soon(second.write)
            await settled()
            assert ring.abandon_writes(trio.current_time() + 1) == 2
            await settled()
            assert (first.owed, second.owed) == (True, True)
            assert first.events == ["abandoned"]
            assert second.events == ["abandoned", "late"]
            nursery.start_soon(third.write)  # the only entry is the kernel's
            await settled()
            pipe.drain()
            await settled()
            assert first.events == ["abandoned", "late"]
            assert third.events == ["done"]
            assert not third.owed


async def test_reads_are_not_abandoned_by_time(memory: memoryview) -> None:
    async with open_ring() as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe:
            caller = Caller(ring, pipe.file, buffer)
            nursery.start_soon(caller.read)
            await settled()
            assert ring.abandon_writes(trio.current_time() + 1) == 0
            pipe.send(bytes(PAGE))
            await settled()
            assert caller.events == ["done"]


@pytest.mark.parametrize("stalled_first", [True, False])
async def test_cancelled_while_stalled(stalled_first: bool, memory: memoryview) -> None:
    async with open_ring() as ring:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe:
            caller = Caller(ring, pipe.file, buffer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.read)
                await settled()
                ring.stalled = stalled_first
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await settled()
                    assert caller.events == (["cancelled"] if stalled_first else [])
                    ring.stalled = True
            assert caller.events == ["cancelled"]
            assert buffer.busy == 0
            pipe.send(b"x" * PAGE)
            await settled()
            assert caller.events == ["cancelled", "late"]
            assert caller.owed
            assert not ring.owes(caller._late)
            assert memory[:PAGE] == b"x" * PAGE


async def test_what_was_abandoned_can_be_removed_and_unmapped() -> None:
    """What the kernel still has then goes where it was meant to, and nowhere else."""
    async with open_ring(files=1, buffers=1) as ring:
        mapping = mmap.mmap(-1, PAGE)
        buffer = ring.add_buffer(memoryview(mapping))
        mapping[:] = b"a" * PAGE
        with FullPipe(ring) as pipe:
            caller = Caller(ring, pipe.file, buffer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.write)
                await settled()
                ring.abandon_writes(trio.current_time() + 1)
            ring.remove_file(pipe.file)
            ring.remove_buffer(buffer)
            mapping.close()
            other = mmap.mmap(-1, PAGE)
            buffer = ring.add_buffer(memoryview(other))  # the same entry, the same address maybe
            pipe.drain()
            await settled()
            assert caller.events == ["abandoned", "late"]
            assert pipe.drain() == b"a" * PAGE
            ring.remove_buffer(buffer)
            other.close()


async def test_only_what_was_abandoned_leaves_the_window(memory: memoryview, tmp_path: Path) -> None:
    written = trio.Event()
    with scratch(tmp_path) as fd, trio.fail_after(20):
        async with open_ring(piece=PAGE, window=2 * PAGE) as ring, trio.open_nursery() as nursery:
            buffer, file = ring.add_buffer(memory), ring.add_file(fd)

            async def write(file: RingFile, length: int) -> None:
                await ring.write(file, buffer, 0, length, 0, patient=True)
                if file.index != second.file.index:
                    written.set()

            with FullPipe(ring) as first, FullPipe(ring) as second:
                caller = Caller(ring, first.file, buffer)
                nursery.start_soon(caller.write)
                nursery.start_soon(write, second.file, PAGE)
                await settled()
                nursery.start_soon(write, file, PAGE)
                await settled()
                assert not os.fstat(fd).st_size
                ring.abandon_writes(trio.current_time() + 1)
                await written.wait()
                second.drain()
                for _ in range(2):  # one begins before the ring hears of the second pipe's page
                    await write(file, 3 * PAGE)
                first.drain()
                await settled()
                assert caller.events == ["abandoned", "late"]


async def test_a_read_into_memory_that_is_not_fixed_is_not_abandoned(memory: memoryview) -> None:
    async with open_ring() as ring:
        buffer = ring.add_buffer(memory, fixed=False)
        ring.stalled = True
        with Pipe(ring) as pipe:
            caller = Caller(ring, pipe.file, buffer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.read)
                await settled()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await settled()
                    assert caller.events == []
                pipe.send(bytes(PAGE))
        assert caller.events == ["done"]


@pytest.mark.parametrize("stalled_first", [True, False])
async def test_the_pump_ends_without_what_was_abandoned(stalled_first: bool, memory: memoryview) -> None:
    scope = trio.CancelScope()

    async def pump(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await ring.run(task_status=task_status)

    async with trio.open_nursery() as nursery:
        with Ring(entries=2) as ring:
            await nursery.start(pump)
            buffer = ring.add_buffer(memory)
            with FullPipe(ring) as pipe, Pipe(ring) as empty:
                write, read = Caller(ring, pipe.file, buffer), Caller(ring, empty.file, buffer)
                queued = Caller(ring, pipe.file, buffer)
                nursery.start_soon(write.write)
                nursery.start_soon(read.read)
                await settled()
                nursery.start_soon(queued.read)
                await settled()
                ring.abandon_writes(trio.current_time() + 1)
                ring.stalled = stalled_first
                scope.cancel()
                await settled()
                ring.stalled = True
                await settled()
                assert (write.events, read.events, queued.events) == (["abandoned"], ["closed"], ["closed"])
                ring.close()
    gc.collect()


async def test_late_comes_after_the_callers_exception_was_handled(memory: memoryview) -> None:
    """Even where the kernel is done in the same moment."""
    for _ in range(20):
        async with open_ring() as ring, trio.open_nursery() as nursery:
            buffer = ring.add_buffer(memory)
            with FullPipe(ring) as pipe:
                caller = Caller(ring, pipe.file, buffer)
                nursery.start_soon(caller.write)
                await settled()
                ring.abandon_writes(trio.current_time() + 1)
                pipe.drain()
                await settled()
                assert caller.events == ["abandoned", "late"]
            ring.remove_buffer(buffer)


async def test_cancelled_before_it_was_started_nothing_is_owed(memory: memoryview) -> None:
    async with open_ring(entries=1) as ring:
        buffer = ring.add_buffer(memory)
        ring.stalled = True
        with Pipe(ring) as pipe:
            first, second = Caller(ring, pipe.file, buffer), Caller(ring, pipe.file, buffer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.read)
                await settled()
                nursery.start_soon(second.read)
                await settled()
                nursery.cancel_scope.cancel()
            assert (first.owed, second.owed) == (True, False)
            pipe.send(bytes(PAGE))
            await settled()
            assert (first.events, second.events) == (["cancelled", "late"], ["cancelled"])


async def test_a_patient_write_is_not_abandoned(memory: memoryview) -> None:
    async with open_ring(entries=1) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with FullPipe(ring) as pipe:
            queued = Caller(ring, pipe.file, buffer)

            async def write() -> None:
                await ring.write(pipe.file, buffer, 0, PAGE, 0, patient=True)

            nursery.start_soon(write)
            await settled()
            nursery.start_soon(queued.write)
            await settled()
            assert ring.abandon_writes(trio.current_time() + 1) == 1
            await settled()
            assert queued.events == ["abandoned", "late"]
            assert ring.statistics().requests == 1
            pipe.drain()
            await settled()
            assert ring.statistics().requests == 0


async def test_abandoned_while_the_caller_does_something_else(memory: memoryview) -> None:
    events: list[str] = []
    gate = trio.Event()
    async with open_ring() as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with FullPipe(ring) as pipe:

            async def write() -> None:
                with pytest.raises(Abandoned):
                    await ring.write(
                        pipe.file, buffer, 0, PAGE, 0, meanwhile=gate.wait, late=lambda: events.append("late")
                    )
                events.append("abandoned")

            nursery.start_soon(write)
            await settled()
            assert ring.abandon_writes(trio.current_time() + 1) == 1
            pipe.drain()
            await settled()
            assert events == []  # the memory is still being read
            gate.set()
            await settled()
            assert events == ["abandoned", "late"]


def test_a_write_without_a_pump_ends_in_time(tmp_path: Path, memory: memoryview) -> None:
    memory[:PAGE] = b"a" * PAGE
    with memory[:PAGE] as page:
        with Ring() as ring, FullPipe(ring) as pipe, pytest.raises(TimeoutError):
            write_within(0.05, pipe.descriptor, page, 0)
        with scratch(tmp_path) as fd:
            write_within(10, fd, page, PAGE)
            assert os.pread(fd, 3 * PAGE, 0) == bytes(PAGE) + b"a" * PAGE
        with open(os.devnull, "rb") as file, pytest.raises(OSError) as caught:
            write_within(10, file.fileno(), page, 0)
        assert caught.value.errno == errno.EBADF
