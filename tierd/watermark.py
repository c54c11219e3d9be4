# SPDX-License-Identifier: GPL-2.0-or-later
"""When RAM is short, and when it no longer is: arithmetic with hysteresis, without clock and I/O.

It is what the module's watchdog does, for systems without the module; and for both, how quickly T2
follows, down at once and up with patience.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .memory import Memory
from .model import NO_PRESSURE, Pressure, PressureLevel

__all__ = ["Governor", "Spare", "Wanted", "Watcher", "Watermarks", "default_reserve"]


def default_reserve(total: int) -> int:
    """Of `total` bytes of RAM, what is left available to others if nothing is said: 5%, as with the module.

    At least 64 MiB, or programs could not start any more; at most 4 GiB, for nobody needs more.
    """
    return max(64 << 20, min(total // 20, 4 << 30))


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Bytes of available RAM at which the level changes."""

    min: int  #: below: critical
    low: int  #: below: low; from here on no longer critical
    high: int  #: from here on calm again

    @classmethod
    def around(cls, reserve: int) -> Watermarks:
        """Those for which `reserve` bytes should stay available."""
        return cls(reserve // 2, reserve, reserve + reserve // 2)

    def level(self, before: PressureLevel, available: int) -> PressureLevel:
        """What the level is now."""
        if available < self.min or (before is PressureLevel.CRITICAL and available < self.low):
            return PressureLevel.CRITICAL
        if available < self.low or (before is not PressureLevel.CALM and available < self.high):
            return PressureLevel.LOW
        return PressureLevel.CALM


_FASTEST = 4 << 30
"""Bytes a second that a program, zeroing what it takes, does not take faster."""
_SOON = 0.02
_SELDOM = 1.0
"""Seconds between looks at least and at most."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """What was found at the last look; look() makes the next one."""

    reserve: int | None  #: bytes that should stay available; None: by the size of what is looked at
    levels: tuple[tuple[str, PressureLevel], ...] = ()  #: of each domain's name
    pressure: Pressure = NO_PRESSURE
    interval: float = 0.0  #: seconds until the next look: shorter near a watermark

    def look(self, domains: Iterable[Memory], *, stalls: bool = False) -> Watcher:
        """Look at `domains`, at least one; the one that is shortest speaks for all.

        With `stalls`, programs wait for memory. It may be said to be available all the same, as cache
        that is in use is; so RAM counts as short at twice the watermarks. Not without any: what waits may
        be in a control group that has less, and to give up RAM would help nobody.
        """
        before = dict(self.levels)
        found = []
        for memory in domains:
            reserve = default_reserve(memory.total) if self.reserve is None else self.reserve
            marks = Watermarks.around(2 * reserve if stalls else reserve)
            level = marks.level(before.get(memory.name, PressureLevel.CALM), memory.available)
            found.append((level, marks.high - memory.available, memory, marks))
        level, missing, memory, marks = max(found, key=lambda each: each[:2])
        wanted = 0 if level is PressureLevel.CALM else max(0, missing)
        events = self.pressure.events + (level is not self.pressure.level)
        distance = min(memory.available - marks.low for _, _, memory, marks in found)
        return replace(
            self,
            levels=tuple((memory.name, level) for level, _, memory, _ in found),
            pressure=Pressure(level, wanted, memory.available, marks.high, events),
            interval=min(max(distance / _FASTEST, _SOON), _SELDOM),
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """So many bytes of arenas are to be given back; with `again`, also by those that refused."""

    bytes: int
    again: bool


@dataclass(frozen=True, slots=True)
class Spare:
    """T2 may have so many bytes more than it has."""

    bytes: int


_PATIENCE = 2.0
_MOST_PATIENCE = 64.0
"""Seconds that RAM must not have been short before T2 grows again: at first, and at most."""
_RELAPSE = 8
"""Pressure that comes back within so many times the patience doubles it."""
_SETTLING = 1.0
"""Seconds that pages of an arena may take to be free: io_uring and drivers unpin them late."""
_AGAIN = 10.0
"""Seconds after which those that refused are asked again."""


class Governor:
    """Makes of what is seen what is to be done. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self._patience = _PATIENCE
        self._calm_since: float | None = None
        self._grew = float("-inf")  # when T2 was last allowed to grow
        self._asked = float("-inf")  # when those that refused were last asked
        self._held = 0
        self._returns: deque[tuple[float, int]] = deque()

    def consider(self, now: float, pressure: Pressure, held: int, *, limited: bool) -> Wanted | Spare | None:
        """What is to be done at `pressure` with `held` bytes in arenas; None: nothing yet.

        `limited` says that T2 has not been allowed all it may have again since RAM was short.
        """
        if held < self._held:
            self._returns.append((now, self._held - held))
        self._held = held
        while self._returns and now - self._returns[0][0] >= _SETTLING:
            self._returns.popleft()
        if pressure.level is PressureLevel.CALM:
            return self._calm(now, pressure, limited)
        if self._calm_since is not None:
            relapse = now - self._grew < _RELAPSE * self._patience
            self._patience = min(2 * self._patience, _MOST_PATIENCE) if relapse else _PATIENCE
            self._calm_since = None
        # When it is critical, to give too much is better than to wait and see.
        coming = 0 if pressure.level is PressureLevel.CRITICAL else sum(size for _, size in self._returns)
        again = now - self._asked >= _AGAIN
        if again:
            self._asked = now
        return Wanted(max(0, pressure.wanted - coming), again)

    def _calm(self, now: float, pressure: Pressure, limited: bool) -> Spare | None:
        if self._calm_since is None:
            self._calm_since = now
        if not limited or now - self._calm_since < self._patience:
            return None
        self._grew = now
        return Spare(pressure.spare)
