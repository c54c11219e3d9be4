# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that end, are cancelled or are abandoned in any order: each is accounted for exactly once."""

from __future__ import annotations

import mmap
from collections import Counter

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.ring_harness import PAGE, FullPipe, Pipe
from tierd.nvme.ring import Abandoned, Ring, RingBuffer, RingFile, open_ring

ENTRIES = 3
WINDOW = 2 * PAGE
STEPS = st.lists(
    st.sampled_from(["write", "read", "cancel", "abandon", "stalled", "well", "serve", "settle"]), max_size=25
)


class Call:
    def __init__(self) -> None:
        self.ends: list[str] = []
        self.late = 0
        self.owed = False
        self.scope = trio.CancelScope()

    async def run(self, ring: Ring, write: bool, file: RingFile, buffer: RingBuffer) -> None:
        with self.scope:
            try:
                if write:
                    await ring.write(
                        file, buffer, 0, 2 * PAGE, 0, meanwhile=trio.lowlevel.checkpoint, late=self.on_late
                    )
                else:
                    await ring.read(file, buffer, 0, 2 * PAGE, 0, arrived=self.on_arrived, late=self.on_late)
            except Abandoned:
                self.ends.append("abandoned")
            except trio.Cancelled:
                self.ends.append("cancelled")
                raise
            else:
                self.ends.append("done")
            finally:
                self.owed = ring.owes(self.on_late)

    def on_arrived(self, length: int) -> None:
        assert not self.ends
        assert length in (0, PAGE)  # the pipe brings whole pages

    def on_late(self) -> None:
        assert self.ends in (["abandoned"], ["cancelled"])
        self.late += 1


async def play(steps: list[str]) -> None:
    calls: list[Call] = []
    abandoned = 0
    with mmap.mmap(-1, 2 * PAGE) as mapping:
        async with (
            open_ring(entries=ENTRIES, piece=PAGE, window=WINDOW) as ring,
            trio.open_nursery() as nursery,
        ):
            buffer = ring.add_buffer(memoryview(mapping))
            with FullPipe(ring) as full, Pipe(ring) as empty:

                def serve() -> None:
                    full.drain()
                    empty.left()
                    empty.send(bytes(4 * PAGE))

                for step in steps:
                    match step:
                        case "write" | "read":
                            calls.append(Call())
                            file = full.file if step == "write" else empty.file
                            nursery.start_soon(calls[-1].run, ring, step == "write", file, buffer)
                        case "cancel" if calls:
                            calls[len(steps) % len(calls)].scope.cancel()
                        case "abandon":
                            abandoned += ring.abandon_writes(trio.current_time() + 1)
                        case "stalled" | "well":
                            ring.stalled = step == "stalled"
                        case "serve":
                            serve()
                        case "settle":
                            await trio.testing.wait_all_tasks_blocked()
                    assert ring.statistics().requests + ring.statistics().abandoned <= ENTRIES
                while not all(call.ends for call in calls) or ring.statistics().abandoned:
                    serve()
                    await trio.testing.wait_all_tasks_blocked()
                await trio.testing.wait_all_tasks_blocked()
                assert (ring.oldest, buffer.busy, full.file.busy, empty.file.busy) == (None, 0, 0, 0)
                # Every entry is free again.
                empty.left()
                last = [Call() for _ in range(ENTRIES)]
                for call in last:
                    nursery.start_soon(call.run, ring, False, empty.file, buffer)
                await trio.testing.wait_all_tasks_blocked()
                assert ring.statistics().requests == ENTRIES
                while not all(call.ends for call in last):
                    serve()
                    await trio.testing.wait_all_tasks_blocked()
            ring.remove_buffer(buffer)
    assert all(len(call.ends) == 1 for call in calls)
    assert all(call.late == call.owed for call in calls)
    assert not any(call.owed for call in calls if call.ends == ["done"])
    assert all(call.owed for call in calls if call.ends == ["abandoned"])
    assert Counter(call.ends[0] for call in calls)["abandoned"] == abandoned


async def within_time(steps: list[str]) -> None:
    with trio.fail_after(60):
        await play(steps)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_every_call_ends_once(steps: list[str]) -> None:
    trio.run(within_time, steps)
