# SPDX-License-Identifier: GPL-2.0-or-later
"""Arenas that are made before anybody asks: a whole daemon whose arenas are ready when the test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.daemon_harness import CHUNK, running, status, wait_until
from tests.unit.fake_shim import FakeShim, connect_shim
from tests.unit.pressure_harness import ARENA, FakeSource, fake_source, until
from tierd import ahead
from tierd.ahead import ArenasAhead
from tierd.arena import Arena, ArenaError
from tierd.config import Config
from tierd.model import PressureLevel
from tierd.wire import RemoteError

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

source = pytest.fixture(fake_source)


ALL = float("inf")


class Making:
    """What is being made; so many as allow() says, and what begins then waits until it says more."""

    def __init__(self) -> None:
        self.begun = 0
        self.closed = 0
        self.most = 0  # that there were at a time
        self.granted = 0
        self.fails = False
        self._allowed = ALL
        self._changed = threading.Condition()

    def allow(self, count: float) -> None:
        with self._changed:
            self._allowed = count
            self._changed.notify_all()

    def populate(self) -> None:
        with self._changed:
            self.begun += 1
            self.most = max(self.most, self.begun - self.closed)
            number = self.begun
            self._changed.wait_for(lambda: number <= self._allowed)
        if self.fails:
            raise ArenaError("there is no memory")

    def close(self) -> None:
        with self._changed:
            self.closed += 1

    async def until(self, happened: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not happened():
                await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> Iterator[Making]:
    """And what is made ahead stays until something else ends it."""
    making = Making()
    populate, close, take = Arena.populate, Arena.close, ArenasAhead.take

    def populated(arena: Arena) -> None:
        making.populate()
        populate(arena)

    def closed(arena: Arena) -> None:
        close(arena)
        making.close()

    async def taken(self: ArenasAhead, id: int) -> Arena | None:
        making.granted += 1
        return await take(self, id)

    monkeypatch.setattr(Arena, "populate", populated)
    monkeypatch.setattr(Arena, "close", closed)
    monkeypatch.setattr(ArenasAhead, "take", taken)
    monkeypatch.setattr(ahead, "PATIENCE", float("inf"))
    yield making
    assert making.closed == making.begun


async def there_are(conf: Config, arenas: int, *, ahead: int) -> None:
    with trio.fail_after(60):
        while True:
            now = await status(conf)
            if (now["arenas"], now["arenas_ahead"]) == (arenas, ahead):
                return
            await trio.testing.wait_all_tasks_blocked(0.001)


async def until_the_next_is_being_made(making: Making, shim: FakeShim) -> None:
    """`shim` has its first arena."""
    making.allow(1)
    await shim.alloc(0, 1)
    await shim.arena()
    await making.until(lambda: making.begun == 2)


async def test_the_next_is_made_while_the_last_is_taken_into_use(tmp_path: Path, making: Making) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 8)
        first = await shim.arena()
        await there_are(conf, 1, ahead=1)
        making.allow(2)
        second = await shim.arena()  # nobody has to make it any more
        assert second.id == first.id + 1
        assert second.read(1) == bytes(CHUNK)
        making.allow(ALL)
        await shim.arena()
        await shim.arena()
        await there_are(conf, 4, ahead=0)  # all there may be
        assert (making.begun, making.most) == (4, 4)


async def test_who_asks_while_it_is_made_waits_for_it(tmp_path: Path, making: Making) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await until_the_next_is_being_made(making, shim)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shim.arena)
            await making.until(lambda: making.granted == 2)
            making.allow(ALL)
        await there_are(conf, 2, ahead=1)
        await shim.arena()
        # It has more now than what there is of it can fill.
        await there_are(conf, 3, ahead=0)
        assert list(shim.arenas) == [1, 2, 3]
        assert making.begun == 3


async def test_none_for_who_fits_vram(tmp_path: Path, making: Making) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.call("vram", slots=8, bytes=8 * CHUNK)
        await shim.alloc(0, 8)
        await shim.arena()  # for copies
        await shim.arena()
        await there_are(conf, 2, ahead=0)
        assert making.begun == 2


async def test_it_is_closed_if_nobody_wants_it_for_long(
    tmp_path: Path, making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "PATIENCE", 0.0)
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 4)
        for count in (1, 2):
            await shim.arena()
            await making.until(lambda closed=count: making.closed == closed)  # type: ignore[misc]
            await there_are(conf, count, ahead=0)
        assert making.begun == 4


@pytest.mark.parametrize("allowed", [1, 2])
async def test_it_goes_with_the_program(tmp_path: Path, making: Making, allowed: int) -> None:
    """Made, or being made."""
    async with running(tmp_path) as conf:
        making.allow(allowed)
        async with connect_shim(conf.socket) as shim:
            await shim.alloc(0, 4)
            await shim.arena()
            await there_are(conf, 1, ahead=allowed - 1)
            await making.until(lambda: making.begun == 2)
        await wait_until(conf, sessions=0)
        making.allow(ALL)
        await there_are(conf, 0, ahead=0)


async def test_it_goes_with_what_it_was_for(tmp_path: Path, making: Making) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 4)
        await shim.arena()
        await there_are(conf, 1, ahead=1)
        await shim.call("free", first=0)
        await there_are(conf, 1, ahead=0)


async def test_it_counts_against_nobody(tmp_path: Path, making: Making) -> None:
    async with (
        running(tmp_path, ram="8MiB") as conf,
        connect_shim(conf.socket) as loader,
        connect_shim(conf.socket) as other,
    ):
        await loader.alloc(0, 4)
        await loader.arena()
        await there_are(conf, 1, ahead=1)
        await other.arena()  # the last one there may be
        await there_are(conf, 2, ahead=0)
        assert making.begun == 2


async def test_ram_does_not_exceed_its_limit(tmp_path: Path, making: Making) -> None:
    """What is discarded while it is made is closed before another is made."""
    async with (
        running(tmp_path, ram="8MiB") as conf,
        connect_shim(conf.socket) as loader,
        connect_shim(conf.socket) as other,
    ):
        await until_the_next_is_being_made(making, loader)
        await loader.call("free", first=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.arena)
            await making.until(lambda: making.granted == 2)
            making.allow(ALL)
        await there_are(conf, 2, ahead=0)
        assert (making.begun, making.most) == (3, 2)


async def test_when_ram_is_short_it_goes_first(tmp_path: Path, making: Making, source: FakeSource) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(0, 8)
        await shim.arena()
        await there_are(conf, 1, ahead=1)
        source.say(PressureLevel.LOW, arenas=1)
        await until(conf, returned_bytes=ARENA, withheld_bytes=3 * ARENA)
        await there_are(conf, 1, ahead=0)
        with pytest.raises(RemoteError, match="no more arenas"):
            await shim.arena()
        # None as long as there may be fewer than otherwise.
        source.say(PressureLevel.CALM, arenas=2)
        await until(conf, withheld_bytes=ARENA)
        await shim.arena()
        await there_are(conf, 2, ahead=0)
        assert making.begun == 3


async def test_one_that_cannot_be_made_is_made_by_who_asks(tmp_path: Path, making: Making) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await until_the_next_is_being_made(making, shim)
        making.fails = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shim.arena)
            await making.until(lambda: making.granted == 2)
            making.allow(2)
            await making.until(lambda: making.begun == 3)
            making.fails = False
            making.allow(ALL)
        await there_are(conf, 2, ahead=1)


async def test_one_that_cannot_be_made_is_nobodys_error(tmp_path: Path, making: Making) -> None:
    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await until_the_next_is_being_made(making, shim)
        making.fails = True
        making.allow(ALL)
        await making.until(lambda: making.closed == 1)
        with pytest.raises(RemoteError, match="there is no memory"):
            await shim.arena()
        making.fails = False
        await shim.arena()
        await there_are(conf, 2, ahead=1)


async def test_who_asked_and_is_gone_leaves_none(tmp_path: Path, making: Making) -> None:
    async with running(tmp_path) as conf:
        async with connect_shim(conf.socket) as shim, trio.open_nursery() as nursery:
            await until_the_next_is_being_made(making, shim)
            nursery.start_soon(shim.arena)
            await making.until(lambda: making.granted == 2)
            nursery.cancel_scope.cancel()
        await wait_until(conf, sessions=0)
        making.allow(ALL)
        await there_are(conf, 0, ahead=0)
        await making.until(lambda: making.closed == 2)


async def test_the_daemon_ends_while_it_is_made(tmp_path: Path, making: Making) -> None:
    async def go_on() -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)  # all is cancelled, and the thread is waited for
        making.allow(ALL)

    async with trio.open_nursery() as nursery, running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await until_the_next_is_being_made(making, shim)
        nursery.start_soon(go_on)
