# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entries of a ring's registered table are taken."""

from __future__ import annotations

from .errors import NoSpace

__all__ = ["Table"]


class Table:
    """Runs of consecutive entries, first fit: a few changes in the life of an arena, so speed is nothing."""

    def __init__(self, entries: int) -> None:
        self._taken = bytearray(entries)

    def take(self, n: int) -> int:
        """The first of `n` consecutive entries, now taken. Raises NoSpace."""
        first = self._taken.find(bytes(n))
        if first < 0:
            raise NoSpace(f"no {n} consecutive entries of {len(self._taken)} are free in the ring's table")
        self._taken[first : first + n] = b"\1" * n
        return first

    def give_back(self, first: int, n: int) -> None:
        """The entries are free again."""
        self._taken[first : first + n] = bytes(n)
