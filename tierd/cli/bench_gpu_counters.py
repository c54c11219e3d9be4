# SPDX-License-Identifier: GPL-2.0-or-later
"""What was moved in each phase of a mode of greenboost bench gpu, as the daemon counted it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .bench_gpu_report import PHASES
from .control import status_of
from .errors import CommandError
from .private import PrivateDaemon

__all__ = ["Counters"]

Figures = dict[str, int]
"""By name of the counter."""

_COUNTERS = (
    "h2d_bytes", "d2h_bytes", "launches", "launches_paged", "chunk_hits", "chunk_stalls", "stall_ns",
    "prefetched", "prefetch_hits", "evictions",
)  # fmt: skip


@dataclass(slots=True)
class Counters:
    """What a daemon counted up to each mark; nothing where there is none."""

    daemon: PrivateDaemon | None
    at: dict[str, Figures] = field(default_factory=dict)

    def at_mark(self, mark: str, measure: Callable[[str], None]) -> None:
        """The program has come to this mark; `measure` is told the phase, if it is one of a phase's.

        What moves while that measures is not the phase's.
        """
        figures = self._now()
        if figures is not None:
            self.at[mark] = figures
        phase, _, point = mark.partition("-")
        if phase not in PHASES:
            return
        try:
            measure(phase)
        finally:
            if point != "end":
                self._leave_out(phase, figures)

    def ended(self, phase: str) -> bool:
        """Whether the phase was not cut."""
        return f"{phase}-end" in self.at

    def _leave_out(self, phase: str, since: Figures | None) -> None:
        now = self._now()
        if phase in self.at and since is not None and now is not None:
            self.at[phase] = {name: at + now[name] - since[name] for name, at in self.at[phase].items()}

    def between(self, phase: str) -> Figures | None:
        """What a phase added, up to where it was cut."""
        first, second = self.at.get(phase), self.at.get(f"{phase}-end", self.at.get("cut"))
        if first is None or second is None:
            return None
        return {name: second[name] - first[name] for name in second}

    def _now(self) -> Figures | None:
        if self.daemon is None:
            return None
        try:
            status: Mapping[str, Any] = status_of(self.daemon.socket)
        except CommandError:
            # Without it the program will fail, and say more; its passes until then are worth keeping.
            return None
        sessions = [*status["sessions"], *status["ended"]]
        figures = {name: sum(one["counters"].get(name, 0) for one in sessions) for name in _COUNTERS}
        for name in ("nvme_read_bytes", "nvme_written_bytes"):
            figures[name] = sum(one[name] for one in sessions)
        # Of the file: a chunk that is one word over and over is read back without it.
        for name in ("read_bytes", "reading_ns"):
            figures[f"spill_{name}"] = sum(path[name] for path in status["spill"])  # of which there is one
        return figures
