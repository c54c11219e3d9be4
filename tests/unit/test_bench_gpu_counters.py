# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to a phase of greenboost bench gpu, and what moved while it paused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tierd.cli import bench_gpu_counters
from tierd.cli.bench_gpu_counters import Counters
from tierd.cli.errors import CommandError
from tierd.cli.private import PrivateDaemon


class Daemon:
    """One that has read so many bytes of T3, in one session and one that has ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = 0
        self.gone = False
        self.there = PrivateDaemon(os.getpid(), Path("socket"), Path(), -1)
        monkeypatch.setattr(bench_gpu_counters, "status_of", self._status)

    def _status(self, socket: Path) -> dict[str, Any]:
        if self.gone:
            raise CommandError("no daemon")
        sessions = [
            {"counters": {"h2d_bytes": 1}, "nvme_read_bytes": part, "nvme_written_bytes": 0}
            for part in (self.read, 1000)
        ]
        return {"sessions": sessions[:1], "ended": sessions[1:]}


def test_what_moves_between_phases_and_in_pauses_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch)
    counters = Counters(daemon.there)
    for mark, read, meanwhile in [
        ("prefill", 10, 5),  # ahead, while it was waited for
        ("prefill-pause", 100, 7),
        ("prefill-end", 1000, 9),
    ]:
        daemon.read += read
        figures = counters.read(mark)
        daemon.read += meanwhile
        if mark != "prefill-end":
            counters.leave_out("prefill", figures)
    counters.read("decode")
    moved = counters.between("prefill")
    assert moved is not None
    assert moved["nvme_read_bytes"] == 100 + 1000
    assert moved["h2d_bytes"] == moved["launches"] == 0
    assert counters.between("decode") is None
    daemon.read += 3
    counters.read("cut")
    assert counters.between("decode") == {**moved, "nvme_read_bytes": 3}


def test_a_daemon_that_is_gone_in_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch)
    counters = Counters(daemon.there)
    counters.read("decode")
    daemon.read = 50
    counters.read("cut")
    daemon.read = 60
    figures = counters.read("decode-pause")
    daemon.gone = True
    for since in (figures, counters.read("decode-pause")):
        for phase in ("decode", "prefill"):
            counters.leave_out(phase, since)
    daemon.gone = False
    counters.leave_out("decode", None)
    moved = counters.between("decode")
    assert moved is not None
    assert moved["nvme_read_bytes"] == 50
    assert Counters(None).between("decode") is None
