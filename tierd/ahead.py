# SPDX-License-Identifier: GPL-2.0-or-later
"""Arenas that are made before anybody asks, while the one before is taken into use.

Which and for whom is the policy's business (MakeAhead, Grant, Discard); here is what becomes of each: it is
made, waits to be taken, and is closed if nobody takes it. It goes to whoever is granted it, so nothing is
told of it to anybody, and a daemon that is killed leaves nothing of it behind.

The alternative, to have shims ask for the next arena as soon as one has come, was rejected: what they
have is theirs until it is recalled, they have no clock to give it back by, and every one would do it
again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from .arena import Arena, ArenaError
from .nvme.errors import NoSpace

__all__ = ["PATIENCE", "ArenasAhead"]

_log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that a made arena waits. To make it takes a tenth of that, so for who asks less often it matters
little whether it is there."""


class _One:
    """An arena from the moment it is to be made. There is an end to it when it is taken or discarded."""

    __slots__ = ("arena", "discarded", "ended", "gone", "made")

    def __init__(self) -> None:
        self.arena: Arena | None = None  # once made and until taken; it may be that it cannot be made
        self.made = trio.Event()
        self.discarded = False
        self.ended = trio.Event()
        self.gone = trio.Event()  # nothing is left of it here


class ArenasAhead:
    """Makes and keeps them; run() has to run meanwhile."""

    def __init__(
        self,
        make: Callable[[int], Awaitable[Arena]],
        close: Callable[[Arena], Awaitable[None]],
        give_up: Callable[[int], bool],
    ) -> None:
        """`make` raises ArenaError, NoSpace or OSError, `close` is not to be cancelled.

        `give_up` tells the policy that nobody is to be granted this id any more; False: somebody has been.
        """
        self._make = make
        self._close = close
        self._give_up = give_up
        self._ones: dict[int, _One] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until it is cancelled; then all are closed that nobody has taken."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @property
    def running(self) -> bool:
        """Whether begin() is possible."""
        return self._nursery is not None

    def __contains__(self, id: int) -> bool:
        """Whether it was begun and has not been taken; what is discarded, until it is closed."""
        return id in self._ones

    def begin(self, id: int) -> None:
        """Make one with this id."""
        assert self._nursery is not None
        self._ones[id] = _One()
        self._nursery.start_soon(self._keep, id)

    def discard(self, id: int) -> None:
        """Nobody will take it. Does nothing where it is none of them, or has been taken."""
        if (one := self._ones.get(id)) is not None:
            one.discarded = True
            one.ended.set()

    async def take(self, id: int) -> Arena | None:
        """The arena, which is the caller's then, once it is made; None if it is to make it itself.

        Either way there is room for it: what was discarded is closed before.
        """
        await self._make_room()
        one = self._ones.get(id)
        if one is None:
            return None
        await one.made.wait()
        del self._ones[id]
        arena, one.arena = one.arena, None
        one.ended.set()
        return arena

    async def _make_room(self) -> None:
        for one in [one for one in self._ones.values() if one.discarded]:
            await one.gone.wait()

    async def _keep(self, id: int) -> None:
        one = self._ones[id]
        try:
            if not one.discarded:
                await self._make_room()
            if not one.discarded:
                try:
                    one.arena = await self._make(id)
                except (ArenaError, NoSpace, OSError) as error:
                    # Whoever asks tries again, and is told.
                    _log.debug("no arena is made ahead: %s", error)
            one.made.set()
            if one.arena is not None:
                with trio.move_on_after(PATIENCE):
                    await one.ended.wait()
            if not one.ended.is_set():
                if self._give_up(id):
                    one.discarded = True
                else:
                    await one.ended.wait()
        finally:
            if one.arena is not None:
                with trio.CancelScope(shield=True):
                    await self._close(one.arena)
            self._ones.pop(id, None)
            one.gone.set()
