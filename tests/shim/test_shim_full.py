# SPDX-License-Identifier: GPL-2.0-or-later
"""All tiers are full to the last chunk, and T3 takes its time."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.unit.daemon_harness import MIB, running
from tierd.arena import Arena
from tierd.migrate import Migrator

from . import sanitizer
from .tiers import Runner

DISK = 0.02
"""Seconds that a read takes, in which the pager goes on asking."""


@pytest.mark.parametrize("ram", ["8MiB", "12MiB"])
@pytest.mark.parametrize("extents", [32, 48])
async def test_a_read_under_way_is_not_taken_for_a_place_that_is_full(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extents: int, ram: str
) -> None:
    """A chunk that is being read has a place in RAM and one in T3, of which one will be free."""
    read = Migrator.fetch

    async def fetch(self: Migrator, chunk: int, arena: Arena, slot: int) -> None:
        await trio.sleep(DISK)
        await read(self, chunk, arena, slot)

    monkeypatch.setattr(Migrator, "fetch", fetch)
    directory = tmp_path / "daemon"
    directory.mkdir()
    async with running(directory, ram=ram, arena="4MiB", extents=extents) as conf:
        with trio.fail_after(120 * sanitizer.SLOWER):
            status, said = await runner.attached(
                conf.socket, 24 * MIB, "-m", "tests.shim.programs.full_ops", "6", "7"
            )
    assert (status, said[-6:]) == (0, b"right\n"), said.decode()
