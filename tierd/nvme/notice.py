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
        self.event = trio.Event()  #: set at the next change

    def tell(self) -> None:
        """Something has changed."""
        self.event.set()
        self.event = trio.Event()

    async def wait(self) -> None:
        """Until the next change."""
        await self.event.wait()
