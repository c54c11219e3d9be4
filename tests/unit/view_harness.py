# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots to show, and a view mounted on them."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tierd.model import AllocationSnapshot, SessionSnapshot, Snapshot, SpillPathSnapshot, Tier, TierSnapshot
from tierd.view import serve_view

NOBODY, GAMES = 65534, 5
LETTERS = "1" * 64 + "23.^v\0" + "3" * 60
ADDRESS = 0x7F00_0000_0000

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse: the view is NOT tested"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: other users' access is NOT tested")


def allocation(**changes: object) -> AllocationSnapshot:
    whole = AllocationSnapshot(ADDRESS, 272_629_755, 0, len(LETTERS), LETTERS)
    return replace(whole, **changes)  # type: ignore[arg-type]


def session(number: int = 3, **changes: object) -> SessionSnapshot:
    whole = SessionSnapshot(
        number, 42, NOBODY, "py\nthon", 8, 130, {Tier.T1: 5, Tier.T2: 6}, {"hits": 1}, (allocation(),)
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def snapshot(*sessions: SessionSnapshot) -> Snapshot:
    return Snapshot(
        pid=1,
        version="0.1",
        socket="/run/greenboost.sock",
        chunk_bytes=2 << 20,
        arena_bytes=64 << 20,
        arenas=1,
        tiers=tuple(TierSnapshot(tier, 10 * tier, tier) for tier in Tier),
        spill_paths=(SpillPathSnapshot("/spill/a", 100, 20, 3, 4),),
        sessions=sessions,
    )


class Source:
    """The daemon's side of the view: the test sets `now` to what the next reader shall see."""

    def __init__(self, *sessions: SessionSnapshot) -> None:
        self.now = snapshot(*sessions)
        self.calls = 0

    def __call__(self) -> Snapshot:
        self.calls += 1
        return self.now


@asynccontextmanager
async def mounted(where: Path, source: Callable[[], Snapshot]) -> AsyncIterator[None]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_view, where, source)
            yield
            nursery.cancel_scope.cancel()


async def shell(command: str, where: Path, *, user: int | None = None) -> subprocess.CompletedProcess[str]:
    done = await trio.run_process(
        ["sh", "-c", command], cwd="/", env={**os.environ, "V": str(where), "LC_ALL": "C"},
        capture_stdout=True, capture_stderr=True, check=False, user=user,
    )  # fmt: skip
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def is_mounted(where: Path) -> bool:
    return any(
        line.split()[4] == str(where) for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )


def wait_unmounted(where: Path, seconds: float = 20) -> None:
    """Wait for the kernel's word that the mount table changed, not for time to pass."""
    with open("/proc/self/mounts") as table:
        changed = select.poll()
        changed.register(table, select.POLLPRI)
        while is_mounted(where):
            assert changed.poll(seconds * 1000), f"{where} is still mounted"
            table.seek(0)
            table.read()
