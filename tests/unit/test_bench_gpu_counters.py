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
    """One that has read so many bytes of T3, each in 2 ns, in one session and one that has ended."""

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
        spill = [{"read_bytes": self.read, "reading_ns": 2 * self.read}]
        return {"sessions": sessions[:1], "ended": sessions[1:], "spill": spill}


def test_what_moves_between_phases_and_in_pauses_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch)
    counters = Counters(daemon.there)
    asked: list[str] = []
    meanwhile = iter((5, 7, 11, 9, 0))  # read ahead

    def measure(phase: str) -> None:
        asked.append(phase)
        daemon.read += next(meanwhile)

    for mark, read in [
        ("load", 1),
        ("load-end", 2),
        ("prefill", 10),
        ("prefill-pause", 100),
        ("prefill-pause", 200),
        ("prefill-end", 1000),
        ("decode", 20),
    ]:
        daemon.read += read
        counters.at_mark(mark, measure)
    assert asked == ["prefill"] * 4 + ["decode"]
    moved = counters.between("prefill")
    assert moved is not None
    assert moved["nvme_read_bytes"] == 100 + 200 + 1000
    assert moved["spill_read_bytes"] == moved["nvme_read_bytes"]
    assert moved["spill_reading_ns"] == 2 * moved["nvme_read_bytes"]
    assert moved["h2d_bytes"] == moved["launches"] == 0
    assert counters.between("decode") is None
    daemon.read += 3
    counters.at_mark("cut", measure)
    for phase, read in (("decode", 3), ("load", 2)):
        expected = {"nvme_read_bytes": read, "spill_read_bytes": read, "spill_reading_ns": 2 * read}
        assert counters.between(phase) == {**moved, **expected}
    assert [counters.ended(phase) for phase in ("load", "prefill", "decode")] == [True, True, False]


def test_interrupted_in_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch)
    counters = Counters(daemon.there)
    counters.at_mark("decode", lambda phase: None)
    daemon.read = 100

    def measure(phase: str) -> None:
        daemon.read += 7
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counters.at_mark("decode-pause", measure)
    counters.at_mark("cut", measure)
    moved = counters.between("decode")
    assert moved is not None
    assert moved["nvme_read_bytes"] == 100


@pytest.mark.parametrize("when", ["before", "meanwhile", "always"])
def test_a_daemon_that_is_gone_in_a_pause(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch)
    counters = Counters(daemon.there)
    daemon.gone = when == "always"
    counters.at_mark("decode", lambda phase: None)
    daemon.read, daemon.gone = 50, when != "meanwhile"

    def measure(phase: str) -> None:
        daemon.read += 7
        daemon.gone = when != "before"

    counters.at_mark("decode-pause", measure)
    daemon.gone = when == "always"
    counters.at_mark("decode-end", lambda phase: None)
    moved = counters.between("decode")
    assert (moved and moved["nvme_read_bytes"]) == (None if when == "always" else 57)
    assert Counters(None).between("decode") is None
