# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of what a drive may be written in a day was written. Pure: the caller tells the time."""

from __future__ import annotations

__all__ = ["Budget"]

_DAY = 86400


class Budget:
    """Bytes written a day (of UTC), in chunks of `chunk` bytes, against `limit`, None for no limit.

    Drives are specified for so many writes a day over their life; a spill path that wears its drive
    out in a year costs more than the RAM that it saved.
    """

    def __init__(self, limit: int | None, chunk: int) -> None:
        self.limit = limit
        self._chunk = chunk
        self._day = 0
        self._written = 0

    def wrote(self, now: float) -> None:
        """A chunk was written at this time, seconds since the epoch."""
        self._turn(now)
        self._written += self._chunk

    def written_today(self, now: float) -> int:
        """Bytes since midnight."""
        self._turn(now)
        return self._written

    def spent(self, now: float) -> bool:
        """Whether one more chunk would be too much."""
        self._turn(now)
        return self.limit is not None and self._written + self._chunk > self.limit

    def _turn(self, now: float) -> None:
        day = int(now // _DAY)
        if day != self._day:
            self._day, self._written = day, 0
