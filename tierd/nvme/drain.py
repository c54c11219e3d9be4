# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving what a path holds to other paths, while its owners go on using it.

An owner's load during a move reads the old place, which stays until the last reader is through; what
an owner gives back during a move is simply gone when the move is over. So owners never wait.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Protocol

import trio

from .errors import NoSpace
from .notice import Notice
from .path import SpillPath, Stored
from .slots import Arena
from .transit import TRANSIT_SLOTS, Transit

__all__ = ["drain"]

_log = logging.getLogger(__name__)


class _Store(Protocol):
    def __call__(self, arena: Arena, slot: int, *, avoid: SpillPath | None) -> Awaitable[Stored]: ...


async def drain(path: SpillPath, transit: Transit, store: _Store, changed: Notice) -> None:
    """Moves everything that can be moved; returns when nothing is left, or it is called off.

    What cannot be read any more stays for its owner, who gets the error. Where there is no room
    elsewhere, waits until something has `changed`.
    """
    lost: set[Stored] = set()
    transit.open()
    try:
        while path.empties and path.extents.owned:
            moving = [stored for stored in path.owners if stored is not None and stored not in lost]
            moved = 0
            event = changed.event  # before looking, so that no change is missed

            async def lane(number: int, moving: list[Stored] = moving) -> None:
                nonlocal moved
                for stored in moving[number::TRANSIT_SLOTS]:
                    if not path.empties:
                        return
                    try:
                        await _move(stored, path, transit, store)
                        moved += 1
                    except NoSpace:
                        return
                    except OSError as error:
                        _log.error("%s: a chunk is lost to its owner: %s", path.name, error.strerror)
                        lost.add(stored)

            async with trio.open_nursery() as nursery:
                for number in range(TRANSIT_SLOTS):
                    nursery.start_soon(lane, number)
            if not moved:
                await event.wait()
    finally:
        transit.close()


async def _move(stored: Stored, path: SpillPath, transit: Transit, store: _Store) -> None:
    """Raises NoSpace, and OSError when it cannot be read, or written anywhere."""
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
