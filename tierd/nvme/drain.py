# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving what a path holds to other paths, while its owners go on using it.

An owner's load during a move reads the old place, which stays until the last reader is through; what
an owner gives back during a move is simply gone when the move is over. So owners never wait.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from .errors import NoSpace, SpillWriteError
from .health import is_ours
from .notice import Notice
from .path import SpillPath, Stored
from .slots import Arena
from .transit import TRANSIT_SLOTS, Transit

__all__ = ["drain"]

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds until what failed for want of memory, say, is tried again."""


class _Store(Protocol):
    def __call__(self, arena: Arena, slot: int, *, avoid: SpillPath | None) -> Awaitable[Stored]: ...


async def drain(
    path: SpillPath, transit: Transit, store: _Store, changed: Notice, room: Callable[[], bool]
) -> None:
    """Moves everything that can be moved; returns when nothing is left, or it is called off.

    What cannot be read any more stays for its owner, who gets the error; it is given up after one more
    try when the path is to be removed. Where there is no `room` elsewhere, waits until something has
    `changed`.
    """
    lost: set[Stored] = set()  # what could not be read
    try:
        transit.open()
    except (OSError, NoSpace) as error:
        _log.error("%s: nothing can be moved yet: %s", path.name, error)
        await trio.sleep(_PAUSE)
        return
    try:
        while path.empties and path.extents.owned:
            event = changed.event  # before looking, so that no change is missed
            moving = [stored for stored in lost if stored.path is path] if path.removals else []
            if room():  # or nothing is even looked for: it may take long, and changes are many
                moving += [stored for stored in path.owners if stored is not None and stored not in lost]
            done = 0

            async def lane(number: int, moving: list[Stored] = moving) -> None:
                nonlocal done
                for stored in moving[number::TRANSIT_SLOTS]:
                    if not path.empties or not (room() or stored in lost):
                        return
                    try:
                        await _move(stored, path, transit, store)
                    except NoSpace:
                        return
                    except OSError as error:
                        if isinstance(error, SpillWriteError) or is_ours(error):
                            _log.warning("%s: a chunk cannot be moved yet: %s", path.name, error.strerror)
                            await trio.sleep(_PAUSE)
                            return
                        if stored not in lost:
                            _log.error("%s: a chunk is lost to its owner: %s", path.name, error.strerror)
                            lost.add(stored)
                        elif stored.path is path:
                            path.lose(stored)
                    done += 1

            async with trio.open_nursery() as nursery:
                for number in range(TRANSIT_SLOTS):
                    nursery.start_soon(lane, number)
            if not done:
                await event.wait()
    finally:
        transit.close()


async def _move(stored: Stored, path: SpillPath, transit: Transit, store: _Store) -> None:
    """Raises NoSpace, OSError when it cannot be read, and SpillWriteError when it can be written nowhere."""
    async with transit.slot() as (arena, slot):
        if stored.path is not path:
            return
        await path.load(stored.index, arena, slot)
        new = await store(arena, slot, avoid=path)
    assert new.path is not None
    if stored.path is not path:  # given back meanwhile
        new.path.release(new)
        return
    path.release(stored)
    stored.path, stored.index = new.path, new.index
    new.path.owners[new.index] = stored
    if stored.moved is not None:
        stored.moved(stored)
