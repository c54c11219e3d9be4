# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of one moment, gathered once and shown many ways.

to_dict() and ended_to_dict() are what ``--json`` prints: their keys are stable, sizes are bytes,
times seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .model import (
    NO_PRESSURE_KNOWN,
    EndedSession,
    PressureSnapshot,
    SessionSnapshot,
    Snapshot,
    SpillPathSnapshot,
    Tier,
    TierSnapshot,
    format_size,
)

__all__ = ["TIER_NAMES", "ended_to_dict", "snapshot", "summary_table", "to_dict"]

TIER_NAMES: Mapping[Tier, str] = {Tier.T1: "vram", Tier.T2: "ram", Tier.T3: "nvme"}


def snapshot(
    *,
    pid: int,
    version: str,
    socket: str,
    chunk_bytes: int,
    arena_bytes: int,
    arenas: int,
    arena_limit: int,
    spill_paths: Iterable[SpillPathSnapshot],
    sessions: Iterable[SessionSnapshot],
    ended: Iterable[EndedSession] = (),
    mountpoint: str | None = None,
    arena_source: str = "memfd",
    pressure: PressureSnapshot = NO_PRESSURE_KNOWN,
    chunk_source: str = "default",
    paging: str = "auto",
    arenas_ahead: int = 0,
) -> Snapshot:
    """A Snapshot whose tiers add up: `arenas` and `arenas_ahead` exist of at most `arena_limit`."""
    sessions, spill_paths = tuple(sessions), tuple(spill_paths)
    resident = {tier: sum(session.resident[tier] for session in sessions) for tier in Tier}
    tiers = (
        TierSnapshot(Tier.T1, sum(session.vram_bytes for session in sessions), resident[Tier.T1]),
        TierSnapshot(Tier.T2, arena_limit * arena_bytes, resident[Tier.T2]),
        TierSnapshot(Tier.T3, sum(path.total for path in spill_paths), resident[Tier.T3]),
    )
    return Snapshot(
        pid=pid,
        version=version,
        socket=socket,
        chunk_bytes=chunk_bytes,
        arena_bytes=arena_bytes,
        arenas=arenas,
        tiers=tiers,
        spill_paths=spill_paths,
        sessions=sessions,
        mountpoint=mountpoint,
        ended=tuple(ended),
        arena_source=arena_source,
        pressure=pressure,
        chunk_source=chunk_source,
        paging=paging,
        arenas_ahead=arenas_ahead,
    )


def to_dict(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as maps and lists, without the allocations."""
    return {
        "pid": snapshot.pid,
        "version": snapshot.version,
        "socket": snapshot.socket,
        "chunk_bytes": snapshot.chunk_bytes,
        "chunk_source": snapshot.chunk_source,
        "paging": snapshot.paging,
        "arena_bytes": snapshot.arena_bytes,
        "arenas": snapshot.arenas,
        "arenas_ahead": snapshot.arenas_ahead,
        "arena_source": snapshot.arena_source,
        "mountpoint": snapshot.mountpoint,
        "tiers": {
            TIER_NAMES[tier.tier]: {"total_bytes": tier.total, "used_bytes": tier.used}
            for tier in snapshot.tiers
        },
        "spill": [
            {
                "path": path.path,
                "total_bytes": path.total,
                "used_bytes": path.used,
                "written_bytes": path.written,
                "read_bytes": path.read,
                "reading_ns": path.reading,
                "state": path.state,
                "weight": path.weight,
                "rate_bytes_per_second": path.rate,
                "errors": path.errors,
                "retired_bytes": path.retired,
                "encrypted": path.encrypted,
                "daily_writes_bytes": path.daily_writes,
                "written_today_bytes": path.written_today,
            }
            for path in snapshot.spill_paths
        ],
        "pressure": {
            "source": snapshot.pressure.source,
            "level": snapshot.pressure.level.name.lower(),
            "wanted_bytes": snapshot.pressure.wanted,
            "available_bytes": snapshot.pressure.available,
            "events": snapshot.pressure.events,
            "returned_bytes": snapshot.pressure.returned,
            "withheld_bytes": snapshot.pressure.withheld,
        },
        "sessions": [_session_to_dict(session, snapshot.chunk_bytes) for session in snapshot.sessions],
        "ended": [ended_to_dict(session) for session in snapshot.ended],
    }


def _common(session: SessionSnapshot | EndedSession) -> dict[str, Any]:
    return {
        "id": session.id,
        "pid": session.pid,
        "uid": session.uid,
        "name": session.name,
        "paging": session.decided.paging,
        "vram_bytes": session.vram_bytes,
        "vram_source": session.decided.vram_source,
        "resident_bytes": {TIER_NAMES[tier]: session.resident.get(tier, 0) for tier in Tier},
        "nvme_written_bytes": session.written,
        "nvme_read_bytes": session.read,
        "counters": dict(session.counters),
    }


def _session_to_dict(session: SessionSnapshot, chunk: int) -> dict[str, Any]:
    mapped = min(session.counters.get("mapped_slots", 0), session.committed_chunks)
    return _common(session) | {
        "vram_slots": session.vram_slots,
        "committed_chunks": session.committed_chunks,
        "held_bytes": {
            "direct": session.counters.get("direct_bytes", 0),
            "paged": (session.committed_chunks - mapped) * chunk,
            "mapped": mapped * chunk,
            "pinned": min(session.counters.get("pinned_chunks", 0), session.committed_chunks) * chunk,
        },
    }


def ended_to_dict(session: EndedSession) -> dict[str, Any]:
    """What became of a session, as ``greenboost run --json`` writes it."""
    return _common(session) | {
        "seconds": session.seconds,
        "peak_chunks": session.peak_chunks,
        "stall_seconds": session.counters.get("stall_ns", 0) / 1e9,
    }


def summary_table(ended: Mapping[str, Any]) -> str:
    """What ended_to_dict() made, for people: some lines without a newline at the end."""
    counters: Mapping[str, int] = ended["counters"]
    resident: Mapping[str, int] = ended["resident_bytes"]

    def size(name: str) -> str:
        return format_size(counters.get(name, 0))

    def count(name: str) -> str:
        return f"{counters.get(name, 0):,}"

    rows = [
        ("held at most", f"VRAM {format_size(resident['vram'])}", f"RAM {format_size(resident['ram'])}"),
        ("", f"NVMe {format_size(resident['nvme'])}", ""),
        ("VRAM and RAM", f"up {size('h2d_bytes')}", f"down {size('d2h_bytes')}"),
        (
            "RAM and NVMe",
            f"up {format_size(ended['nvme_read_bytes'])}",
            f"down {format_size(ended['nvme_written_bytes'])}",
        ),
        ("launches", count("launches"), f"{count('launches_paged')} with paged memory"),
        *(
            [("", f"{count('launches_exceeding')} with more than fits VRAM", "")]
            if counters.get("launches_exceeding")
            else []
        ),
        ("chunks found", f"{count('chunk_hits')} in VRAM", f"{count('chunk_stalls')} waited for"),
        *([("", f"{count('chunks_in_place')} used in RAM", "")] if counters.get("chunks_in_place") else []),
        ("prefetched", count("prefetched"), f"{count('prefetch_hits')} of them used"),
        ("evicted", count("evictions"), f"{count('evictions_clean')} of them unchanged"),
        ("time", f"{ended['seconds']:.1f} s", f"{ended['stall_seconds']:.1f} s of it stalled"),
    ]
    title = f"greenboost: {ended['name'] or 'application'} (pid {ended['pid']})"
    return "\n".join([title, *(f"  {a:<14}{b:<22}{c}".rstrip() for a, b, c in rows)])
