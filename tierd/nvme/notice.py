# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting until something has changed, to look again."""

from __future__ import annotations

import trio

__all__ = ["Notice"]


class Notice:
    """Told of changes from where nothing can be awaited; a condition variable needs its lock for that.

    Take `event`, look, and if it is not as it should be wait for the event: no change is missed. Where
    nothing is awaited between looking and waiting, wait() does.
    """

    def __init__(self) -> None:
        self._event: trio.Event | None = None  # made for who wants it: most changes interest nobody

    @property
    def event(self) -> trio.Event:
        """Set at the next change."""
        if self._event is None:
            self._event = trio.Event()
        return self._event

    def tell(self) -> None:
        """Something has changed."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Until the next change."""
        await self.event.wait()
