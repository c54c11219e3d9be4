# SPDX-License-Identifier: GPL-2.0-or-later
"""What was moved in each phase of a mode of greenboost bench gpu, as the daemon counted it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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

    def read(self, mark: str) -> Figures | None:
        """Put down what they are at this mark, if the daemon says."""
        if (figures := self._now()) is not None:
            self.at[mark] = figures
        return figures

    def leave_out(self, phase: str, since: Figures | None) -> None:
        """What has moved since these figures were read is not the phase's, which began before."""
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
        return figures
