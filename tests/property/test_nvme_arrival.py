# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the order and size in which bytes arrive: what is said to be there is there."""

from __future__ import annotations

import mmap
from functools import partial

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.ring_harness import PAGE, Pipe
from tierd.nvme.ring import open_ring

LENGTH = 5 * PAGE


async def play(entries: int, window: int, sends: list[int]) -> None:
    with mmap.mmap(-1, LENGTH) as mapping:
        told = [0]

        def arrived(length: int) -> None:
            assert told[-1] <= length < LENGTH
            assert 0 not in mapping[:length]
            told.append(length)

        async with (
            open_ring(entries=entries, piece=PAGE, window=window) as ring,
            trio.open_nursery() as nursery,
        ):
            buffer = ring.add_buffer(memoryview(mapping))
            with Pipe(ring) as pipe:
                nursery.start_soon(partial(ring.read, pipe.file, buffer, 0, LENGTH, 0, arrived=arrived))
                sent = 0
                for size in [*sends, LENGTH]:
                    await trio.testing.wait_all_tasks_blocked()
                    size = min(size, LENGTH - sent)
                    pipe.send(b"x" * size)
                    sent += size
                await trio.testing.wait_all_tasks_blocked()
        assert 0 not in mapping[:]


async def within_time(entries: int, window: int, sends: list[int]) -> None:
    with trio.fail_after(60):
        await play(entries, window, sends)


@given(st.integers(1, 6), st.integers(1, 6 * PAGE), st.lists(st.integers(1, 2 * PAGE), max_size=8))
@settings(max_examples=60, deadline=None)
def test_bytes_that_are_said_to_be_there_are(entries: int, window: int, sends: list[int]) -> None:
    trio.run(within_time, entries, window, sends)
