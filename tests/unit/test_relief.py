# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole daemon while RAM is short, which the test says when it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.daemon_harness import CHUNK, running, status
from tests.unit.fake_shim import FakeArena, FakeShim, connect_shim
from tests.unit.pressure_harness import ARENA, FakeSource, fake_source, until
from tierd import session, watermark
from tierd.model import PressureLevel
from tierd.wire import RemoteError

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

source = pytest.fixture(fake_source)

CALM, LOW, CRITICAL = PressureLevel


def fill(shim: FakeShim, arena: FakeArena, first: int) -> None:
    for slot in range(arena.slots):
        arena.write(slot, bytes([first + slot, 1]))


def obeys(shim: FakeShim) -> list[int]:
    """The shim spills what fill() has put there, if it is still allocated; the arenas it was asked for."""
    asked: list[int] = []

    async def empty(arena: int) -> None:
        asked.append(arena)
        for slot in range(2):
            if shim.arenas[arena].read(slot)[1] == 1:
                chunk = shim.arenas[arena].read(slot)[0]
                await shim.call("spill", chunk=chunk, arena=arena, slot=slot)

    shim.on_recall = empty
    return asked


async def test_arenas_are_given_back_and_come_again(tmp_path: Path, source: FakeSource) -> None:
    async with running(tmp_path, extents=12) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 12)
        arenas = [await shim.arena() for _ in range(4)]
        for number, arena in enumerate(arenas):
            fill(shim, arena, 2 * number)
        asked = obeys(shim)
        source.say(LOW, arenas=2)
        await until(conf, arenas=2, returned_bytes=2 * ARENA)
        assert set(asked) == {arenas[3].id, arenas[2].id}
        shown = (await status(conf))["pressure"]
        assert (shown["source"], shown["level"], shown["events"]) == ("fake", "low", 1)
        assert shown["withheld_bytes"] == 2 * ARENA
        # The bytes are where they were, or in T3.
        assert (await status(conf))["tiers"]["nvme"]["used_bytes"] == 4 * CHUNK
        await shim.call("fetch", chunk=5, arena=arenas[0].id, slot=0)
        assert arenas[0].read(0) == bytes([5, 1]) * (CHUNK // 2)
        with pytest.raises(RemoteError, match="no more arenas"):
            await shim.arena()
        source.say(CALM, arenas=1)
        await until(conf, withheld_bytes=ARENA, level="calm")
        await shim.arena()
        with pytest.raises(RemoteError, match="no more arenas"):
            await shim.arena()
        source.say(CALM, arenas=50)
        await until(conf, withheld_bytes=0)
        await shim.arena()
        assert (await status(conf))["pressure"]["returned_bytes"] == 2 * ARENA


async def test_what_was_promised_stays(tmp_path: Path, source: FakeSource) -> None:
    async with running(tmp_path, extents=3) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 9)  # all: 8 slots less 2 to move chunks in, and 3 extents
        arenas = [await shim.arena() for _ in range(4)]
        for number, arena in enumerate(arenas[:3]):
            fill(shim, arena, 2 * number)
        asked = obeys(shim)
        source.say(CRITICAL, arenas=4)
        await until(conf, level="critical", withheld_bytes=0)
        assert asked == []
        # What is freed need not stay.
        for arena in arenas:
            arena.write(0, bytes(2))
            arena.write(1, bytes(2))
        await shim.call("free", first=0)
        await until(conf, arenas=0)
        assert sorted(asked) == [arena.id for arena in arenas]


async def test_a_session_that_says_nothing_is_passed_over(
    tmp_path: Path, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RECALL_PATIENCE", 0.05)
    async with (
        running(tmp_path) as conf,
        connect_shim(conf.socket) as deaf,
        connect_shim(conf.socket) as other,
    ):
        wakes = trio.Event()

        async def sleep(_: int) -> None:
            await wakes.wait()

        kept = [await deaf.arena() for _ in range(3)]
        await other.arena()
        deaf.on_recall = sleep
        asked = obeys(other)
        source.say(LOW, arenas=1)
        await until(conf, arenas=3, returned_bytes=ARENA)
        assert len(asked) == 1
        # It was only late.
        wakes.set()
        await until(conf, arenas=2)
        assert [id in deaf.arenas for id in (arena.id for arena in kept)] == [True, True, False]


async def test_a_storm_costs_little_and_gives_nothing_out(
    tmp_path: Path, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark, "_PATIENCE", 60.0)
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        for _ in range(4):
            await shim.arena()
        asked = obeys(shim)
        source.looks = 0
        began = trio.current_time()
        for _ in range(5000):
            source.say(LOW, arenas=1)
            source.say(CALM, arenas=0)
            source.say(LOW, arenas=1)
            await trio.lowlevel.checkpoint()
        took = trio.current_time() - began
        assert source.looks <= took / 0.01 + 1
        # It was calm for a moment again and again, and what was given back stays given back.
        source.say(LOW, arenas=4)
        await until(conf, arenas=0)
        source.say(CALM, arenas=4)
        await until(conf, level="calm", withheld_bytes=4 * ARENA)
        assert len(asked) == 4


async def test_the_source_is_told_of_t3(tmp_path: Path, source: FakeSource) -> None:
    async with running(tmp_path, extents=8) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 2)
        arena = await shim.arena()
        await shim.call("spill", chunk=0, arena=arena.id, slot=0)
        source.say(CALM, arenas=9)
        await until(conf, level="calm")
        with trio.fail_after(60):
            while source.reports[-1] != (8 * CHUNK, CHUNK):
                source.again()
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert source.reports[0] == (8 * CHUNK, 0)


async def test_the_end_of_a_session_counts_too(tmp_path: Path, source: FakeSource) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as other:
        async with connect_shim(conf.socket) as shim:
            for _ in range(3):
                await shim.arena()
            source.say(LOW, arenas=2)
            await until(conf, withheld_bytes=3 * ARENA)
        await until(conf, arenas=0, returned_bytes=2 * ARENA)
        await other.arena()
        with pytest.raises(RemoteError, match="no more arenas"):
            await other.arena()


async def test_a_source_that_fails_is_asked_again(
    tmp_path: Path, source: FakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.arena()
        obeys(shim)
        source.broken = True
        for _ in range(2):
            looks = source.looks
            source.say(LOW, arenas=1)
            with trio.fail_after(60):
                while source.looks == looks:
                    await trio.testing.wait_all_tasks_blocked(0.001)
        assert (await status(conf))["pressure"]["level"] == "calm"
        source.broken = False
        source.again()
        await until(conf, arenas=0, level="low")
    assert caplog.text.count("cannot see whether RAM is short") == 1
