# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures add up, and their names stay."""

from __future__ import annotations

import json

from tierd import metrics
from tierd.model import (
    Decisions,
    EndedSession,
    PressureLevel,
    PressureSnapshot,
    SessionSnapshot,
    Snapshot,
    SpillPathSnapshot,
    Tier,
)
from tierd.wire import COUNTERS

MIB = 1 << 20
COUNTED = {name: n for n, name in enumerate(COUNTERS)} | {
    "stall_ns": 1_500_000_000,
    "h2d_bytes": 3 * MIB,
    "mapped_slots": 5,
    "pinned_chunks": 3,
}


def session(id: int) -> SessionSnapshot:
    return SessionSnapshot(
        id=id,
        pid=100 + id,
        uid=1000,
        name="python",
        vram_slots=4,
        committed_chunks=9,
        resident={Tier.T1: 8 * MIB, Tier.T2: 4 * MIB, Tier.T3: 2 * MIB},
        counters=COUNTED,
        written=6 * MIB,
        read=4 * MIB,
        vram_bytes=9 * MIB,
        decided=Decisions("mapped", "asked"),
    )


ENDED = EndedSession(
    id=1,
    pid=101,
    uid=1000,
    name="python",
    seconds=2.5,
    peak_chunks=9,
    resident={Tier.T1: 8 * MIB, Tier.T2: 4 * MIB, Tier.T3: 2 * MIB},
    counters=COUNTED,
    written=6 * MIB,
    read=4 * MIB,
)


def snapshot() -> Snapshot:
    return metrics.snapshot(
        pid=1,
        version="0",
        socket="/s",
        chunk_bytes=2 * MIB,
        arena_bytes=4 * MIB,
        arenas=2,
        arena_limit=5,
        spill_paths=[
            SpillPathSnapshot("/a", 20 * MIB, 2 * MIB, 6 * MIB, 4 * MIB),
            SpillPathSnapshot("/b", MIB, 0, 0, 0),
        ],
        sessions=[session(2), session(3)],
        ended=[ENDED],
        mountpoint="/v",
        arena_source="module",
        chunk_source="GREENBOOST_CHUNK",
        paging="mapped",
        arenas_ahead=1,
        pressure=PressureSnapshot("module", PressureLevel.LOW, 3 * MIB, 5 * MIB, 7, 4 * MIB, 8 * MIB),
    )


def test_tiers_are_the_sums_of_the_sessions() -> None:
    tiers = {tier.tier: (tier.total, tier.used) for tier in snapshot().tiers}
    assert tiers == {
        Tier.T1: (18 * MIB, 16 * MIB),
        Tier.T2: (20 * MIB, 8 * MIB),
        Tier.T3: (21 * MIB, 4 * MIB),
    }


def test_keys_are_stable_and_values_are_json() -> None:
    shown = metrics.to_dict(snapshot())
    assert json.loads(json.dumps(shown)) == shown
    assert set(shown) == {
        "pid",
        "version",
        "socket",
        "chunk_bytes",
        "chunk_source",
        "paging",
        "arena_bytes",
        "arenas",
        "arenas_ahead",
        "arena_source",
        "pressure",
        "mountpoint",
        "tiers",
        "spill",
        "sessions",
        "ended",
    }
    assert shown["tiers"]["nvme"] == {"total_bytes": 21 * MIB, "used_bytes": 4 * MIB}
    assert shown["spill"][0] == {
        "path": "/a",
        "total_bytes": 20 * MIB,
        "used_bytes": 2 * MIB,
        "written_bytes": 6 * MIB,
        "read_bytes": 4 * MIB,
        "reading_ns": 0,
        "state": "active",
        "weight": 1.0,
        "rate_bytes_per_second": None,
        "errors": 0,
        "retired_bytes": 0,
        "encrypted": False,
        "daily_writes_bytes": None,
        "written_today_bytes": 0,
    }
    assert shown["arena_source"] == "module"
    assert shown["pressure"] == {
        "source": "module",
        "level": "low",
        "wanted_bytes": 3 * MIB,
        "available_bytes": 5 * MIB,
        "events": 7,
        "returned_bytes": 4 * MIB,
        "withheld_bytes": 8 * MIB,
    }
    common = {
        "id",
        "pid",
        "uid",
        "name",
        "paging",
        "vram_bytes",
        "vram_source",
        "resident_bytes",
        "nvme_written_bytes",
        "nvme_read_bytes",
        "counters",
    }
    assert set(shown["sessions"][0]) == common | {"vram_slots", "committed_chunks", "held_bytes"}
    assert (shown["chunk_source"], shown["paging"]) == ("GREENBOOST_CHUNK", "mapped")
    first = shown["sessions"][0]
    assert (first["paging"], first["vram_source"]) == ("mapped", "asked")
    assert first["held_bytes"] == {
        "direct": COUNTED["direct_bytes"],
        "paged": (9 - 5) * 2 * MIB,
        "mapped": 5 * 2 * MIB,
        "pinned": 3 * 2 * MIB,
    }
    assert set(shown["ended"][0]) == common | {"seconds", "peak_chunks", "stall_seconds"}
    assert shown["ended"][0]["resident_bytes"] == {"vram": 8 * MIB, "ram": 4 * MIB, "nvme": 2 * MIB}
    assert shown["ended"][0]["stall_seconds"] == 1.5


def test_the_table_says_it_to_people() -> None:
    table = metrics.summary_table(metrics.ended_to_dict(ENDED))
    lines = table.splitlines()
    assert lines[0] == "greenboost: python (pid 101)"
    assert "VRAM 8.0 MiB" in table
    assert "NVMe 2.0 MiB" in table
    assert any("RAM and NVMe" in line and "4.0 MiB" in line and "6.0 MiB" in line for line in lines)
    assert "2.5 s" in lines[-1]
    assert "1.5 s of it stalled" in lines[-1]
    assert all(line == line.rstrip() for line in lines)
    assert "application (pid 101)" in metrics.summary_table(metrics.ended_to_dict(ENDED) | {"name": ""})
