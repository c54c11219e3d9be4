# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the processes of a command, as the daemon counted it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import metrics, wire
from .control import status_of

__all__ = ["newest_session", "results", "table"]

_PATIENCE = 2.0
"""Seconds for the daemon to notice that a process is gone: it has to finish its transfers first."""
_PAUSE = 0.02
"""Seconds between two looks."""


def newest_session(status: Mapping[str, Any]) -> int:
    """The highest session number so far; -1 if there was none."""
    return max((session["id"] for session in (*status["sessions"], *status["ended"])), default=-1)


def results(socket: Path, *, since: int | None, seconds: float) -> dict[str, Any]:
    """What the sessions of this user that began after session `since` (None: all) came to.

    Keys: chunk_bytes, tiers and spill as in `status`; sessions, each as metrics.ended_to_dict()
    makes it with `running`; and total, their sum. `seconds` is the age of what still runs. Raises
    CommandError when the daemon cannot be asked.
    """
    status = _settled_status(socket, since)
    sessions = [{**session, "running": False} for session in _ours(status["ended"], since)]
    for session in _ours(status["sessions"], since):
        stalled = session["counters"].get("stall_ns", 0) / 1e9
        whole = {"seconds": seconds, "peak_chunks": session["committed_chunks"], "stall_seconds": stalled}
        sessions.append({**session, **whole, "running": True})
    return {
        "chunk_bytes": status["chunk_bytes"],
        "chunk_source": status["chunk_source"],
        "tiers": status["tiers"],
        "spill": status["spill"],
        "sessions": sessions,
        "total": _total(sessions),
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures of results() for people: a few lines for each process."""
    sessions = figures["sessions"]
    if not sessions:
        return "greenboost: no process of the command used the GPU"
    return "\n".join(metrics.summary_table(session) for session in sessions)


def _settled_status(socket: Path, since: int | None) -> dict[str, Any]:
    """The status once the daemon has closed the accounts of every process that is gone."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        status = status_of(socket)
        gone = [session for session in _ours(status["sessions"], since) if not _exists(session["pid"])]
        if not gone or time.monotonic() > deadline:
            return status
        # Asking again is all there is: nothing announces the end of somebody else's session.
        time.sleep(_PAUSE)


def _ours(sessions: Any, since: int | None) -> list[Mapping[str, Any]]:
    # The command's descendants cannot be told from the same user's other programs once they have
    # ended; with a private daemon (since None) there are no others.
    if since is None:
        return list(sessions)
    uid = os.geteuid()
    return [session for session in sessions if session["id"] > since and session["uid"] == uid]


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _total(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "resident_bytes": _summed(metrics.TIER_NAMES.values(), "resident_bytes", sessions),
        "nvme_written_bytes": sum(session["nvme_written_bytes"] for session in sessions),
        "nvme_read_bytes": sum(session["nvme_read_bytes"] for session in sessions),
        "stall_seconds": sum((session["stall_seconds"] for session in sessions), 0.0),
        "counters": _summed(wire.COUNTERS, "counters", sessions),
    }


def _summed(names: Iterable[str], key: str, sessions: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {name: sum(session[key].get(name, 0) for session in sessions) for name in names}
