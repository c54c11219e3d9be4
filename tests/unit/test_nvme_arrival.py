# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of a read while it is under way: how much of it is there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.testing
import xxhash

from tests.unit.nvme_harness import DATA, arena_of, spill_size
from tests.unit.ring_harness import MIB, PAGE, Pipe, mapped_memory
from tierd.model import SpillOptions
from tierd.nvme import SpillFile, open_spill_set
from tierd.nvme.checksum import Digest
from tierd.nvme.ring import Ring, RingBuffer, open_ring

pytestmark = pytest.mark.usefixtures("no_leaked_fds")
memory = pytest.fixture(mapped_memory)
settled = trio.testing.wait_all_tasks_blocked


async def read(ring: Ring, pipe: Pipe, buffer: RingBuffer, length: int, arrived: list[int]) -> None:
    await ring.read(pipe.file, buffer, 0, length, 0, arrived=arrived.append)


async def test_short_transfers_are_told_of(memory: memoryview) -> None:
    arrived: list[int] = []
    async with open_ring() as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe:
            nursery.start_soon(read, ring, pipe, buffer, 3000, arrived)
            for _ in range(3):
                await settled()
                pipe.send(bytes(1000))
    assert arrived == [1000, 2000]


async def test_a_read_that_is_not_alone_comes_in_one_piece(memory: memoryview) -> None:
    """Of two pieces the pipe would give some of the bytes to the second."""
    arrived: list[int] = []
    async with open_ring() as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as first, Pipe(ring) as second:
            nursery.start_soon(ring.read, first.file, buffer, 8 * MIB, 1, 0)
            await settled()
            nursery.start_soon(read, ring, second, buffer, MIB, arrived)
            await settled()
            first.send(b"1")
            await settled()
            for n in range(MIB // PAGE):
                second.send(bytes(PAGE))
                await settled()
                assert arrived[-1] == (n + 1) * PAGE or n + 1 == MIB // PAGE


async def test_the_oldest_is_told_of_and_then_the_next(memory: memoryview) -> None:
    first: list[int] = []
    second: list[int] = []
    async with open_ring() as ring, trio.open_nursery() as nursery:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as one, Pipe(ring) as two:
            nursery.start_soon(read, ring, one, buffer, 2 * PAGE, first)
            await settled()
            nursery.start_soon(read, ring, two, buffer, 2 * PAGE, second)
            await settled()
            one.send(bytes(PAGE))
            await settled()
            two.send(bytes(PAGE))
            await settled()
            one.send(bytes(PAGE))
            await settled()
            two.send(bytes(PAGE))
    assert set(first) == {PAGE}
    assert second == [PAGE]


async def test_what_was_cancelled_is_not_said_to_be_there(memory: memoryview) -> None:
    arrived: list[int] = []
    async with open_ring(entries=2, piece=PAGE) as ring:
        buffer = ring.add_buffer(memory)
        with Pipe(ring) as pipe:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, ring, pipe, buffer, 4 * PAGE, arrived)
                await settled()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    pipe.send(bytes(PAGE))
                    await settled()
                    pipe.send(bytes(PAGE))
    assert set(arrived) <= {0}


async def test_what_was_abandoned_is_not_told_of(memory: memoryview) -> None:
    arrived: list[int] = []
    async with open_ring(entries=2, piece=PAGE) as ring:
        buffer = ring.add_buffer(memory)
        ring.stalled = True
        with Pipe(ring) as pipe:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, ring, pipe, buffer, 2 * PAGE, arrived)
                await settled()
                nursery.cancel_scope.cancel()
            pipe.send(bytes(PAGE))
            await settled()
            assert ring.statistics().abandoned == 1
            assert arrived == []
            pipe.send(bytes(PAGE))
            await settled()
            assert ring.statistics().abandoned == 0


@pytest.mark.parametrize("sizes", [(), (1,), (5, 5, 4000), (MIB, 2 * MIB + 7), (MIB, 0, 40 * MIB)])
async def test_a_checksum_taken_as_bytes_arrive(sizes: tuple[int, ...]) -> None:
    with memoryview(os.urandom(40 * MIB)) as content:
        digesting = Digest(content)
        for size in sizes:
            digesting.take(size)
        await digesting.take_all()
        assert digesting.value == xxhash.xxh3_64_intdigest(content)


def test_not_too_much_is_checked_at_a_time() -> None:
    content = bytearray(40 * MIB)
    with memoryview(content) as memory:
        digesting = Digest(memory)
        digesting.take(40 * MIB)
        content[16 * MIB] = 1
        trio.run(digesting.take_all)
        assert digesting.value == xxhash.xxh3_64_intdigest(content)


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("part", [0, 1, 2, 3])
async def test_a_bit_that_flipped_in_any_part_is_found(part: int, encrypt: bool, tmp_path: Path) -> None:
    chunk = 2 * MIB
    path = tmp_path / "0"
    file = SpillFile.open(str(path), spill_size(2, chunk), chunk, options=SpillOptions(encrypt=encrypt))
    content = os.urandom(chunk)
    with arena_of(2, chunk) as arena:
        async with open_spill_set([file], chunk=chunk) as spill:
            spill.add_arena(arena)
            arena[0] = content
            stored = await spill.store(arena, 0)
            await spill.load(stored, arena, 1)
            assert arena[1] == content
            flip(path, DATA + stored.index * chunk + part * chunk // 4 + 777)
            with pytest.raises(OSError, match="other bytes than were written") as caught:
                await spill.load(stored, arena, 1)
            assert caught.value.errno == errno.EIO
            spill.give_back(stored)
            spill.remove_arena(arena)


def flip(path: Path, where: int) -> None:
    with open(path, "r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())
