# SPDX-License-Identifier: GPL-2.0-or-later
"""Coming back to the daemon: what a session says that it has from the one before this one.

Arenas, allocations, and last ("resume") which chunks it counts on T3 for. What it does not say is given
back. Who is waited for is reattach's affair; see docs/decisions/0002-reattach.md.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping

from .holdings import Holdings, Lent
from .policy import ArenaReturned, Freed, Refused
from .tiers import Tiers
from .wire import MAX_STATE_CHUNKS, Request, close_fds

__all__ = ["hear"]

_log = logging.getLogger(__name__)


async def hear(has: Holdings, tiers: Tiers, request: Request) -> Mapping[str, int] | None:
    """Do what `request` means for a session that is not back yet; the answer to it. Raises Refused.

    After "resume" it is back.
    """
    if request.op.name == "adopt":
        await _adopt(has, tiers, request)
    elif request.op.name == "alloc":
        _claim(has, request)
    elif request.op.name == "resume":
        try:
            return {"lost": _settle(has, tiers, request.fds[0])}
        finally:
            close_fds(request.fds)
    else:
        close_fds(request.fds)
        raise Refused("EPROTO", f"{request.op.name}: resume has to be said before")
    return None


async def _adopt(has: Holdings, tiers: Tiers, request: Request) -> None:
    id, (fd,) = request.uint("arena"), request.fds
    if id not in tiers.state.sessions[has.who.id].arenas or id in has.lent:
        os.close(fd)
        raise Refused("EINVAL", f"arena {id} is not this session's")
    lent = has.lent[id] = Lent()
    lent.arena = await tiers.adopt_arena(id, fd)
    lent.sent.set()


def _claim(has: Holdings, request: Request) -> None:
    new = has.possible(request)
    claimed = new.chunks + has.allocated
    if claimed > has.committed:
        raise Refused("EINVAL", f"{claimed} chunks are claimed, {has.committed} were admitted")
    has.enter(new)


def _settle(has: Holdings, tiers: Tiers, fd: int) -> int:
    """Do what a resume with this memfd means; how many of the chunks that are counted on are lost."""
    counted_on = _counted_on(fd)
    id = has.who.id

    def wanted(chunk: int) -> bool:
        return counted_on[chunk : chunk + 1] not in (b"", b"\0") and has.owner(chunk) is not None

    has.migrator.drop_all([chunk for chunk in has.migrator.held if not wanted(chunk)])
    for arena in set(tiers.state.sessions[id].arenas) - set(has.lent):
        tiers.apply(ArenaReturned(id, arena))
    tiers.apply(Freed(id, has.committed - has.allocated))
    has.peak_chunks = has.committed
    has.note()
    there = bytearray(len(counted_on))
    for chunk in has.migrator.held:
        there[chunk] = 1
    lost = there.count(0) - counted_on.count(0)
    if lost:
        _log.error("session %d: %d chunks that it had in T3 are lost", id, lost)
        _say_what_is_there(fd, bytes(there))
    return lost


def _counted_on(fd: int) -> bytes:
    """What a resume's memfd says, one byte a chunk. Raises Refused."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # reading any other kind of file might block for ever
    except OSError:
        raise Refused("EPERM", "what is counted on is said in a memfd") from None
    size = os.fstat(fd).st_size
    if size > MAX_STATE_CHUNKS:
        raise Refused("EINVAL", f"what is counted on: no session has more than {MAX_STATE_CHUNKS} chunks")
    try:
        return os.pread(fd, size, 0)
    except OSError as error:
        raise Refused("EPERM", f"what is counted on cannot be read: {error.strerror}") from error


def _say_what_is_there(fd: int, there: bytes) -> None:
    try:
        os.pwrite(fd, there, 0)
    except OSError as error:
        raise Refused("EPERM", f"what is lost cannot be said: {error.strerror}") from error
