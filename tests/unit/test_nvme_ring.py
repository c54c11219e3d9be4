# SPDX-License-Identifier: GPL-2.0-or-later
"""The ring on real files; on pipes where a transfer must be short, or not end until the test says so."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.nvme_harness import as_nobody, limited
from tests.unit.ring_harness import MIB, PAGE, FullPipe, Pipe, mapped_memory, round_trips, scratch
from tierd.nvme import ringsetup
from tierd.nvme.errors import MemlockError, NoSpace, RingError
from tierd.nvme.ring import Ring, RingBuffer, RingFile, open_ring

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

memory = pytest.fixture(mapped_memory)


@pytest.mark.parametrize("setup", range(len(ringsetup.SETUPS)))
async def test_round_trip_under_every_setup(
    setup: int, tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ringsetup, "SETUPS", ringsetup.SETUPS[setup:])
    content = os.urandom(7 * MIB + PAGE)
    memory[: len(content)] = content
    with scratch(tmp_path, os.O_DIRECT) as fd:
        async with open_ring(entries=4, piece=MIB) as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            await ring.write(file, buffer, 0, len(content), 3 * PAGE)
            await ring.read(file, buffer, 8 * MIB, len(content), 3 * PAGE)
            assert memory[8 * MIB : 8 * MIB + len(content)] == content
            assert ring.statistics().setup_flags in ringsetup.SETUPS
            assert ring.statistics().requests == 0
            assert ring.statistics().completed == 2


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE + 1, MIB + 3, 5 * MIB - 7])
@pytest.mark.parametrize("fixed", [True, False])
async def test_unaligned_sizes_without_o_direct(
    length: int, fixed: bool, tmp_path: Path, memory: memoryview
) -> None:
    content = os.urandom(length)
    memory[5 : 5 + length] = content
    with scratch(tmp_path) as fd:
        async with open_ring(piece=MIB) as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory, fixed=fixed)
            await ring.write(file, buffer, 5, length, 11)
            assert os.pread(fd, length + 1, 11) == content
            await ring.read(file, buffer, 8 * MIB + 1, length, 11)
            assert memory[8 * MIB + 1 : 8 * MIB + 1 + length] == content


async def test_unaligned_with_o_direct_is_the_callers_error(disk: Path, memory: memoryview) -> None:
    with scratch(disk, os.O_DIRECT) as fd:
        async with open_ring() as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            with pytest.raises(OSError, match="Invalid argument"):
                await ring.write(file, buffer, 0, 100, 0)


async def test_more_requests_than_entries(tmp_path: Path, memory: memoryview) -> None:
    with scratch(tmp_path, os.O_DIRECT) as fd:
        async with open_ring(entries=3, piece=PAGE) as ring:
            await round_trips(ring, fd, memory, 60, 16 * PAGE)
            assert ring.statistics().completed == 2 * 60


async def test_short_transfers_are_continued(memory: memoryview) -> None:
    content = os.urandom(3 * PAGE)
    async with open_ring() as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe:
            nursery.start_soon(ring.read, pipe.file, buffer, 0, len(content), 0)
            for start in range(0, len(content), 1000):
                await trio.testing.wait_all_tasks_blocked()
                pipe.send(content[start : start + 1000])
    assert memory[: len(content)] == content


async def test_no_more_is_sent_than_the_window(memory: memoryview) -> None:
    async with open_ring(piece=PAGE, window=2 * PAGE) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as first, Pipe(ring) as second:
            nursery.start_soon(ring.read, first.file, buffer, 0, 3 * PAGE, 0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ring.read, second.file, buffer, 4 * PAGE, PAGE, 0)
            for sent, waits in [(0, True), (PAGE, True), (1, False)]:
                first.send(bytes(sent))
                second.send(b"2" * PAGE)
                await trio.testing.wait_all_tasks_blocked()
                assert (second.left() != b"") == waits
            first.send(bytes(2 * PAGE - 1))
    assert memory[4 * PAGE : 5 * PAGE] == b"2" * PAGE


async def test_writes_that_hang_keep_no_read_from_the_kernel(memory: memoryview) -> None:
    async with open_ring(piece=PAGE, window=PAGE) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with FullPipe(ring) as full, Pipe(ring) as pipe:
            for _ in range(2):
                nursery.start_soon(ring.write, full.file, buffer, 0, PAGE, 0)
            await trio.testing.wait_all_tasks_blocked()
            pipe.send(b"x" * PAGE)
            await ring.read(pipe.file, buffer, PAGE, PAGE, 0)
            assert ring.statistics().requests == 2
            while ring.statistics().requests:
                full.drain()
                await trio.testing.wait_all_tasks_blocked()
    assert memory[PAGE : 2 * PAGE] == b"x" * PAGE


async def test_what_failed_leaves_the_window(tmp_path: Path, memory: memoryview) -> None:
    with scratch(tmp_path) as fd:
        os.truncate(fd, 4 * PAGE)
        async with open_ring(piece=PAGE, window=2 * PAGE) as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            for _ in range(4):
                with pytest.raises(OSError, match="error"):
                    await ring.read(file, buffer, 0, PAGE, 8 * PAGE)
            with trio.fail_after(30):
                await ring.read(file, buffer, 0, 4 * PAGE, 0)


async def test_no_more_than_a_large_chunk_is_sent_as_a_rule(memory: memoryview) -> None:
    async with open_ring() as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as first, Pipe(ring) as second:
            for _ in range(4):
                nursery.start_soon(ring.read, first.file, buffer, 0, 16 * MIB, 0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ring.read, second.file, buffer, 0, PAGE, 0)
            second.send(bytes(PAGE))
            await trio.testing.wait_all_tasks_blocked()
            assert second.left() == bytes(PAGE)
            ring.stalled = True
            nursery.cancel_scope.cancel()


async def test_end_of_file_is_an_error(tmp_path: Path, memory: memoryview) -> None:
    with scratch(tmp_path, os.O_DIRECT) as fd:
        os.truncate(fd, MIB)
        async with open_ring(piece=MIB // 2) as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            with pytest.raises(OSError, match="error") as caught:
                await ring.read(file, buffer, 0, 2 * MIB, 0)
            assert caught.value.errno == errno.EIO
            await ring.read(file, buffer, 0, MIB, 0)


async def test_an_error_in_the_middle_is_the_requests(tmp_path: Path, memory: memoryview) -> None:
    with scratch(tmp_path, os.O_DIRECT) as fd:
        async with open_ring(entries=2, piece=64 * PAGE) as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            # The write that meets the limit is shortened to it, and its continuation refused.
            with limited(resource.RLIMIT_FSIZE, MIB + PAGE), pytest.raises(OSError, match="large") as caught:
                await ring.write(file, buffer, 0, 8 * MIB, 0)
            assert caught.value.errno == errno.EFBIG
            assert os.fstat(fd).st_size == MIB + PAGE


async def test_meanwhile_runs_when_the_kernel_has_the_request(memory: memoryview, tmp_path: Path) -> None:
    seen: list[int] = []
    gate = trio.Event()

    async def ended() -> None:
        while ring.statistics().requests:
            await trio.lowlevel.checkpoint()

    async def look() -> None:
        seen.append(ring.statistics().completed)
        await ended()
        seen.append(ring.statistics().completed)

    async def fail() -> None:
        raise ZeroDivisionError

    with scratch(tmp_path) as fd:
        async with open_ring() as ring, trio.open_nursery() as nursery:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            await ring.write(file, buffer, 0, PAGE, 0, meanwhile=look)
            assert seen == [0, 1]  # an end that nobody waits for yet is not forgotten
            with pytest.raises(ZeroDivisionError):
                await ring.write(file, buffer, 0, PAGE, 0, meanwhile=fail)
            nursery.start_soon(partial(ring.write, file, buffer, 0, PAGE, 0, meanwhile=gate.wait))
            await trio.testing.wait_all_tasks_blocked()
            await ended()
            assert buffer.busy == 1
            gate.set()
        assert buffer.busy == 0


async def test_an_error_is_told_after_meanwhile(memory: memoryview) -> None:
    async with open_ring() as ring:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe, pytest.raises(OSError, match="Bad file descriptor"):
            await ring.write(pipe.file, buffer, 0, PAGE, 0, meanwhile=trio.testing.wait_all_tasks_blocked)


@pytest.mark.parametrize("length", [PAGE, 3 * MIB])
async def test_a_write_with_sync(length: int, memory: memoryview, tmp_path: Path) -> None:
    content = os.urandom(length)
    memory[:length] = content
    with scratch(tmp_path) as fd:
        async with open_ring(entries=2, piece=MIB) as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            await ring.write(file, buffer, 0, length, 0, sync=True)
            assert os.pread(fd, length + 1, 0) == content
            assert ring.statistics().completed == 1


@pytest.mark.parametrize("piece", [PAGE, PAGE // 4])
async def test_an_error_of_the_fdatasync_is_the_writes(piece: int, memory: memoryview) -> None:
    """A pipe takes the bytes but cannot be synced, which shows that it is asked to, and when."""
    async with open_ring(entries=2, piece=piece) as ring:
        buffer = ring.add_buffer(memory)
        with FullPipe(ring) as pipe:
            pipe.drain()
            await ring.write(pipe.file, buffer, 0, PAGE, 0)
            with pytest.raises(OSError, match="Invalid argument") as caught:
                await ring.write(pipe.file, buffer, 0, PAGE, 0, sync=True)
            assert caught.value.errno == errno.EINVAL
            assert len(pipe.drain()) == 2 * PAGE
        assert (buffer.busy, ring.statistics().requests) == (0, 0)


async def test_no_fdatasync_after_a_failed_write(memory: memoryview, tmp_path: Path) -> None:
    with scratch(tmp_path, os.O_DIRECT) as fd:
        async with open_ring(entries=2, piece=64 * PAGE) as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            with limited(resource.RLIMIT_FSIZE, MIB), pytest.raises(OSError, match="large") as caught:
                await ring.write(file, buffer, 0, 8 * MIB, 0, sync=True)
            assert caught.value.errno == errno.EFBIG


async def read_one(ring: Ring, pipe: Pipe, buffer: RingBuffer, length: int, outcomes: list[str]) -> None:
    try:
        await ring.read(pipe.file, buffer, 0, length, 0)
    except trio.Cancelled:
        outcomes.append("cancelled")
        raise
    except trio.ClosedResourceError:
        outcomes.append("closed")
    else:
        outcomes.append("read")


async def test_cancelled_task_waits_for_the_kernel(memory: memoryview) -> None:
    outcomes: list[str] = []
    async with open_ring() as ring:
        buffer = ring.add_buffer(memory)
        async with trio.open_nursery() as nursery:
            with Pipe(ring) as pipe, trio.CancelScope(shield=True):
                nursery.start_soon(read_one, ring, pipe, buffer, PAGE, outcomes)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert outcomes == []  # the buffer is still the kernel's
                assert buffer.busy == 1
                pipe.send(b"x" * PAGE)
        assert buffer.busy == 0
    assert outcomes == ["read"]  # all of it was with the kernel, so nothing was cut short


async def test_cancelling_drops_the_pieces_not_sent(memory: memoryview) -> None:
    outcomes: list[str] = []
    async with open_ring(entries=1, piece=PAGE) as ring:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_one, ring, pipe, buffer, 4 * PAGE, outcomes)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                early = list(outcomes)
                pipe.send(b"1" * 2 * PAGE)
            assert early == []
            assert outcomes == ["cancelled"]
            assert pipe.left() == b"1" * PAGE


async def test_a_request_cancelled_before_it_was_sent_ends_at_once(memory: memoryview) -> None:
    outcomes: list[str] = []
    async with open_ring(entries=2, piece=PAGE) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe:
            nursery.start_soon(ring.read, pipe.file, buffer, 2 * PAGE, 2 * PAGE, 0)  # both entries
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as inner:
                inner.start_soon(read_one, ring, pipe, buffer, PAGE, outcomes)
                await trio.testing.wait_all_tasks_blocked()
                inner.cancel_scope.cancel()
            assert outcomes == ["cancelled"]
            pipe.send(b"1" * 2 * PAGE)


async def test_cancelled_while_waiting_for_a_slot(memory: memoryview) -> None:
    async with open_ring(entries=1, piece=PAGE) as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe:
            nursery.start_soon(ring.read, pipe.file, buffer, 0, PAGE, 0)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as inner:
                inner.start_soon(ring.read, pipe.file, buffer, 0, PAGE, 0)
                await trio.testing.wait_all_tasks_blocked()
                inner.cancel_scope.cancel()
            assert ring.statistics().requests == 1
            pipe.send(b"1" * PAGE)


async def test_the_pump_ends_after_the_last_transfer(memory: memoryview) -> None:
    outcomes: list[str] = []
    scope = trio.CancelScope()

    async def pump(ring: Ring, *, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await ring.run(task_status=task_status)

    with Ring(entries=2, piece=PAGE) as ring:
        buffer = ring.add_buffer(memory)
        async with trio.open_nursery() as nursery:
            await nursery.start(pump, ring)
            with Pipe(ring) as pipe:
                nursery.start_soon(read_one, ring, pipe, buffer, 2 * PAGE, outcomes)  # with the kernel
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(read_one, ring, pipe, buffer, PAGE, outcomes)  # waits
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert outcomes == ["closed"]
                with pytest.raises(trio.BusyResourceError):
                    ring.close()
                with pytest.raises(trio.ClosedResourceError):
                    await ring.read(pipe.file, buffer, 0, PAGE, 0)
                pipe.send(b"1" * 2 * PAGE)
        assert outcomes == ["closed", "read"]
    ring.close()
    with pytest.raises(trio.ClosedResourceError):
        ring.add_buffer(memory)


async def test_what_is_in_use_cannot_be_removed(memory: memoryview) -> None:
    async with open_ring() as ring:
        buffer = ring.add_buffer(memory)
        async with trio.open_nursery() as nursery:
            with Pipe(ring) as pipe:
                nursery.start_soon(ring.read, pipe.file, buffer, 0, PAGE, 0)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    ring.remove_buffer(buffer)
                with pytest.raises(trio.BusyResourceError):
                    ring.remove_file(pipe.file)
                pipe.send(b"1" * PAGE)
        file = pipe.file
        ring.remove_file(file)
        ring.remove_buffer(buffer)
        with pytest.raises(ValueError, match="removed"):
            ring.remove_file(file)
        with pytest.raises(ValueError, match="removed"):
            ring.remove_buffer(buffer)
        with pytest.raises(ValueError, match="removed"):
            await ring.read(file, ring.add_buffer(memory), 0, PAGE, 0)


@pytest.mark.parametrize(
    ("offset", "length", "position"), [(0, 0, 0), (-1, 5, 0), (16 * MIB - 1, 2, 0), (0, 1, -1)]
)
async def test_transfers_outside_of_the_buffer(
    offset: int, length: int, position: int, memory: memoryview, tmp_path: Path
) -> None:
    with scratch(tmp_path) as fd:
        async with open_ring() as ring:
            file, buffer = ring.add_file(fd), ring.add_buffer(memory)
            with pytest.raises(ValueError, match="no transfer of"):
                await ring.write(file, buffer, offset, length, position)


async def test_tables_are_bounded_and_reused(memory: memoryview, tmp_path: Path) -> None:
    with scratch(tmp_path) as fd, Ring(buffers=2, files=2) as ring:
        files: list[RingFile] = [ring.add_file(fd) for _ in range(2)]
        with pytest.raises(NoSpace):
            ring.add_file(fd)
        ring.remove_file(files[0])
        ring.add_file(fd)
        buffers = [ring.add_buffer(memory[:PAGE]) for _ in range(2)]
        with pytest.raises(NoSpace):
            ring.add_buffer(memory)
        ring.remove_buffer(buffers[1])
        ring.add_buffer(memory[:PAGE])
        ring.remove_file(files[1])
        with pytest.raises(OSError, match="Bad file descriptor"):
            ring.add_file(-7)


async def test_a_transfer_across_a_gib(tmp_path: Path) -> None:
    border = 1 << 30
    with scratch(tmp_path, os.O_DIRECT) as fd, mmap.mmap(-1, border + 2 * MIB) as mapping:
        mapping.madvise(mmap.MADV_HUGEPAGE)
        with memoryview(mapping) as view:
            content = os.urandom(2 * MIB)
            view[border - MIB : border + MIB] = content
            async with open_ring(piece=4 * MIB) as ring:
                file, buffer = ring.add_file(fd), ring.add_buffer(view)
                assert buffer.segments == 2
                await ring.write(file, buffer, border - MIB, 2 * MIB, 0)
                assert_file(fd, content)
                view[border - MIB : border + MIB] = bytes(2 * MIB)
                await ring.read(file, buffer, border - MIB, 2 * MIB, 0)
                assert view[border - MIB : border + MIB] == content


def assert_file(fd: int, content: bytes) -> None:
    with mmap.mmap(-1, len(content)) as page:
        assert os.preadv(fd, [page], 0) == len(content)
        assert page[:] == content


def test_memlock_limit_says_what_to_do(memory: memoryview) -> None:
    with as_nobody(), limited(resource.RLIMIT_MEMLOCK, MIB), Ring() as ring:
        with pytest.raises(MemlockError) as caught:
            ring.add_buffer(memory)
        assert caught.value.errno == errno.ENOMEM
        assert "16.0 MiB" in str(caught.value)
        assert "limit on locked memory is 1.0 MiB; raise it with 'ulimit -l unlimited'" in str(caught.value)
        assert not ring.add_buffer(memory, fixed=False).fixed


def test_memory_that_is_registered_cannot_be_unmapped() -> None:
    with Ring() as ring, mmap.mmap(-1, PAGE) as mapping:
        view = memoryview(mapping)
        buffer = ring.add_buffer(view)
        with pytest.raises(BufferError):
            view.release()
        ring.remove_buffer(buffer)
        view.release()


def test_kernels_that_refuse_every_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ringsetup, "SETUPS", (1 << 31, 1 << 30))
    with pytest.raises(RingError, match=r"too old.*Linux 5\.19"):
        Ring()


def test_no_file_descriptors_left_for_a_ring() -> None:
    with limited(resource.RLIMIT_NOFILE, 3), pytest.raises(RingError) as caught:
        Ring()
    assert caught.value.errno == errno.EMFILE
    assert "raise ulimit -n" in str(caught.value)
