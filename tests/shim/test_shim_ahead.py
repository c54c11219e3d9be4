# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that allocates bit by bit: its arenas are made before it asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.unit.daemon_harness import CHUNK, running
from tierd import ahead
from tierd.ahead import ArenasAhead
from tierd.arena import Arena

from .pieces import CHUNK_BY_CHUNK
from .tiers import Runner


async def test_only_the_first_arena_is_waited_for(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 MiB of VRAM and 48 in use, so of 4 MiB ten arenas at least."""
    ready: dict[int, bool] = {}  # whether each was begun before it was granted
    take = ArenasAhead.take

    async def taken(self: ArenasAhead, id: int) -> Arena | None:
        ready[id] = id in self
        return await take(self, id)

    monkeypatch.setattr(ArenasAhead, "take", taken)
    monkeypatch.setattr(ahead, "PATIENCE", float("inf"))
    directory = tmp_path / "daemon"
    directory.mkdir()
    async with running(directory, ram="64MiB", arena="4MiB", extents=0) as conf:
        with trio.fail_after(600):
            done = await runner.attached(conf.socket, 4 * CHUNK, "-c", CHUNK_BY_CHUNK, "24")
        assert done == (0, b"right\n")
        assert len(ready) >= 10
        assert [id for id in ready if not ready[id]] == [1]
