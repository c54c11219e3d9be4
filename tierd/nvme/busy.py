# SPDX-License-Identifier: GPL-2.0-or-later
"""For how long something was under way, however much of it at once."""

from __future__ import annotations

import time

__all__ = ["Busy"]


class Busy:
    """Enter it for as long as something is under way; as often at once as there is something."""

    __slots__ = ("_before", "_since", "_under_way")

    def __init__(self) -> None:
        self._before = 0
        self._since = 0
        self._under_way = 0

    def __enter__(self) -> None:
        if not self._under_way:
            self._since = time.monotonic_ns()
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._before += time.monotonic_ns() - self._since

    @property
    def ns(self) -> int:
        """Nanoseconds until now."""
        return self._before + (time.monotonic_ns() - self._since if self._under_way else 0)
