# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon for which memory is as short as the test says."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from tests.unit.daemon_harness import CHUNK, status
from tierd import daemon, watermark
from tierd.config import Config
from tierd.model import Pressure, PressureLevel

__all__ = ["ARENA", "FakeSource", "fake_source", "until"]

MIB = 1 << 20
ARENA = 2 * CHUNK
"""Bytes of an arena, as running() makes them if nothing else is said."""


class FakeSource:
    """Memory is as short as the test says."""

    name = "fake"

    def __init__(self) -> None:
        self._now = Pressure(PressureLevel.CALM, 0, 1000 * MIB, 100 * MIB, 0)
        self._news = trio.Event()
        self.looks = 0
        self.broken = False
        self.reports: list[tuple[int, int]] = []

    def say(self, level: PressureLevel, arenas: int) -> None:
        """So many arenas are wanted, or when it is calm, could be had."""
        spare = -arenas if level else arenas
        self._now = Pressure(
            level, max(0, -spare) * ARENA, 100 * MIB + spare * ARENA, 100 * MIB, self._now.events + 1
        )
        self.again()

    def again(self) -> None:
        """The same once more."""
        self._news.set()
        self._news = trio.Event()

    def look(self) -> Pressure:
        self.looks += 1
        if self.broken:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._now

    async def wait(self) -> None:
        await self._news.wait()

    def report_t3(self, total: int, used: int) -> None:
        self.reports.append((total, used))


def fake_source(monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    """The source of the daemons that are started from now on; what is calm is so at once. A fixture."""
    source = FakeSource()

    @contextmanager
    def opened(*_: object) -> Iterator[FakeSource]:
        yield source

    monkeypatch.setattr(daemon, "open_source", opened)
    monkeypatch.setattr(watermark, "_PATIENCE", 0.0)
    monkeypatch.setattr(watermark, "_SETTLING", 0.0)
    return source


async def until(conf: Config, **expected: int | str) -> None:
    """Until the daemon shows these of its pressure, or `arenas`."""
    with trio.fail_after(60):
        while True:
            now = await status(conf)
            now["pressure"]["arenas"] = now["arenas"]
            if all(now["pressure"][key] == value for key, value in expected.items()):
                return
            await trio.testing.wait_all_tasks_blocked(0.001)
