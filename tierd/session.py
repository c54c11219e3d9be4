# SPDX-License-Identifier: GPL-2.0-or-later
"""One application process served: its requests, from its hello to its end.

However a session ends (bye, a closed socket, SIGKILL, a broken message, the daemon's own end), run()
awaits the transfers under way and then gives back every arena and extent before it returns.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio

from .arena import Arena
from .capacity import lone_capacity, room
from .holdings import Holdings, Identity, Lent
from .ledger import Ledger
from .model import PAGING_MODES, VRAM_SOURCES, Decisions, EndedSession
from .nvme.spillset import Stored
from .policy import Allocated, Freed, RecallFailed, Refused, VramSet
from .reattach import Absent
from .resume import hear
from .statemap import StateMap
from .tiers import RECALL_PATIENCE, Tiers
from .wire import MAX_UNDER_WAY, Disconnected, RemoteError, Request, WireError, close_fds
from .wire.connection import Connection

__all__ = ["Session"]

_log = logging.getLogger(__name__)

_BURST = 16
"""Requests that are taken one after the other before everybody else has a turn."""
BYE_PATIENCE = 10.0
"""Seconds for a process to take the answer to its bye."""


class Session:
    """Serves one shim on `connection`. Owns `state`; the caller owns the connection and the pidfd."""

    def __init__(
        self,
        who: Identity,
        connection: Connection,
        state: StateMap,
        tiers: Tiers,
        ledger: Ledger,
        *,
        absent: Absent | None = None,
        ended: Callable[[int, EndedSession | None], None],
    ) -> None:
        """With `absent`, which is the session's until it is settled, it goes on with what that has.

        `ended` is called with its number once everything is given back; from then on there is nothing to be
        shown. It is told None of one that is absent again.
        """
        self.who = who
        self._connection = connection
        self.holdings = Holdings(who, state, tiers, ledger, absent.heir if absent else None)
        self._tiers = tiers
        self._ledger = ledger
        self._absent = absent  # until it is back
        self._gone = False  # it ended by itself, or by its process, or was thrown out
        self._ended = ended
        self._nursery: trio.Nursery | None = None  # while requests are taken
        # To tasks of _serve() that have nothing to do; see there.
        self._assignments, self._assigned = trio.open_memory_channel[Request | None](0)
        self._under_way = 0
        self._bye: Request | None = None
        self._at_once: Mapping[str, Callable[[Request], Mapping[str, int] | None]] = {
            "vram": self._vram,
            "decided": self._decide,
            "memory": self._memory,
            "alloc": self._alloc,
            "free": self._free,
            "trim": self._trim,
            "drop": self._drop,
        }
        self._waiting: Mapping[str, Callable[[Request], Awaitable[None]]] = {
            "spill": self._move,
            "fetch": self._move,
            "arena": self._arena,
            "return": self._return,
        }

    # From beginning to end

    async def run(self, hello: Request) -> None:
        """Answer `hello` and all that follows, until the session ends."""
        if self._absent is None:
            self._tiers.join(self.who.id, self)
            self.holdings.note()
        else:
            self._tiers.take_over(self.who.id, self)
            self.holdings.migrator.inherit(self._absent.stored)
        try:
            async with trio.open_nursery() as nursery:
                if self.who.pidfd >= 0:
                    nursery.start_soon(self._watch, nursery.cancel_scope)
                with suppress(Disconnected):  # which is seen again at once
                    await self._connection.answer(hello, self._welcome())
                if self._absent is None or await self._come_back(self._absent):
                    self._nursery = nursery
                    for arena in self._tiers.state.sessions[self.who.id].recalled:
                        self.recall(arena)  # while it was away
                    await self._serve(nursery)
                nursery.cancel_scope.cancel()
        except Exception:
            self._gone = True  # nobody knows what it would go on with
            raise
        finally:
            self._release()
        if self._bye is not None:
            # It need not wait for the answer, and if it is stopped cannot take it.
            with suppress(Disconnected), trio.move_on_after(BYE_PATIENCE):
                await self._connection.answer(self._bye)

    def _welcome(self) -> Mapping[str, int | str]:
        ram, spill = lone_capacity(self._tiers.state.whole)
        chunk = self._tiers.chunk
        return {
            "session": self.who.id,
            "chunk": chunk,
            "arena": self._tiers.arena_bytes,
            "ram": ram * chunk,
            "spill": spill * chunk,
            "key": self.who.key,
        }

    async def _come_back(self, absent: Absent) -> bool:
        """Hear what it has from the daemon before this one; whether it goes on."""
        try:
            while True:
                request = await self._connection.receive()
                try:
                    answer = await hear(self.holdings, self._tiers, request)
                except Refused as refused:
                    _log.warning("session %d cannot go on: %s", self.who.id, refused)
                    self._gone = refused.name != "ENOMEM"  # which may be over when it tries again
                    await self._refuse(request, refused)
                    return False
                await self._connection.answer(request, answer)
                if request.op.name == "resume":
                    self._absent = None
                    absent.settle(None)
                    _log.info("session %d (pid %d) goes on", self.who.id, self.who.pid)
                    return True
        except WireError as error:
            self._gone = True
            await self._connection.refuse(error.re, error.name, str(error))
        except Disconnected:
            _log.warning("session %d (pid %d) was gone before it went on", self.who.id, self.who.pid)
        return False

    async def _watch(self, scope: trio.CancelScope) -> None:
        # A child of the application may hold a copy of the socket, so its closing does not tell.
        await trio.lowlevel.wait_readable(self.who.pidfd)
        self._gone = True
        scope.cancel()

    def _release(self) -> None:
        """Give everything back. No request is under way any more."""
        has = self.holdings
        last = has.last_snapshot()
        absent, self._absent = self._absent, None
        still: Mapping[int, Stored] | None = None
        if self._gone or not self.who.key or (absent is None and self._has_hung_up()):
            self._ledger.end(self.who.id)  # before its extents are anybody else's
            has.migrator.close()
        else:
            still = has.migrator.leave()  # the daemon ends: its process goes on with the next
        for lent in has.lent.values():
            if lent.arena is not None:
                self._tiers.close_arena(lent.arena)
        has.lent.clear()
        has.map.close()
        if absent is not None and still is not None:
            self._tiers.take_over(self.who.id, absent)
            self._ended(self.who.id, None)
            absent.settle(still)
            return
        self._tiers.leave(self.who.id)
        if absent is not None:
            absent.settle(None)
        self._ended(self.who.id, last)

    def _has_hung_up(self) -> bool:
        """Whether the session was ended at the other end, as nobody has seen yet."""
        try:
            while (request := self._connection.receive_nowait()).op.name != "bye":
                close_fds(request.fds)
        except trio.WouldBlock:
            return False
        except (Disconnected, WireError):
            pass
        return True

    # Requests

    async def _serve(self, nursery: trio.Nursery, job: Request | None = None) -> None:
        """Carry out `job`, or receive requests where it is None, and so on until the session ends.

        Who has received a request goes on with it at once, while another task receives the next. To
        start a task for each would begin it a round of the scheduler later, and the making and ending
        of tasks took a tenth of the time that a request takes.
        """
        try:
            while True:
                if job is None:
                    job = await self._receive(nursery)
                    if job is None:
                        return
                    self._assign(nursery, None)
                await self._carry_out(job)
                job = await self._assigned.receive()
        except Disconnected:
            self._gone = True
        finally:
            self._nursery = None
            nursery.cancel_scope.cancel()

    def _assign(self, nursery: trio.Nursery, job: Request | None) -> None:
        """Have another task do it."""
        try:
            self._assignments.send_nowait(job)
        except trio.WouldBlock:
            nursery.start_soon(self._serve, nursery, job)

    async def _receive(self, nursery: trio.Nursery) -> Request | None:
        """Wait for requests; the last that is there, the others assigned to others; None at the end.

        Those that need not wait for anything are answered here. A lone request is not kept waiting by
        a look for others.
        """
        last = None
        assigned = 0
        while last is None or (self._under_way > 1 and assigned < _BURST):
            try:
                if last is None:
                    new = await self._connection.receive()
                else:
                    new = self._connection.receive_nowait()
            except trio.WouldBlock:
                break
            except WireError as error:
                _log.warning("session %d (pid %d): %s", self.who.id, self.who.pid, error)
                self._gone = True
                await self._connection.refuse(error.re, error.name, str(error))
                return None
            if new.op.name == "bye":
                self._gone = True
                self._bye = new
                return None
            if new.op.name not in self._waiting:
                await self._answer_at_once(new)
            elif self._under_way >= MAX_UNDER_WAY:
                await self._refuse(new, Refused("EBUSY", f"{MAX_UNDER_WAY} requests have no answer yet"))
            else:
                self._under_way += 1
                if last is not None:
                    self._assign(nursery, last)
                    assigned += 1
                last = new
        return last

    async def _answer_at_once(self, request: Request) -> None:
        try:
            at_once = self._at_once.get(request.op.name)
            if at_once is None:
                close_fds(request.fds)
                raise Refused("EISCONN", f"{request.op.name} was said already")
            answer = at_once(request)
        except Refused as refused:
            await self._refuse(request, refused)
        else:
            await self._connection.answer(request, answer)

    async def _carry_out(self, request: Request) -> None:
        try:
            await self._waiting[request.op.name](request)
        except Refused as refused:
            await self._refuse(request, refused)
        finally:
            self._under_way -= 1

    async def _refuse(self, request: Request, refused: Refused) -> None:
        await self._connection.refuse(request.id, refused.name, str(refused))

    def _vram(self, request: Request) -> None:
        self._tiers.apply(VramSet(self.who.id, request.uint("slots")))
        self.holdings.vram_bytes = request.uint("bytes")
        self.holdings.note()

    def _decide(self, request: Request) -> None:
        decided = Decisions(request.text("paging"), request.text("vram_source"))
        if decided.paging not in PAGING_MODES or decided.vram_source not in VRAM_SOURCES:
            raise Refused("EINVAL", f"{decided.paging!r}, {decided.vram_source!r}: not known")
        self.holdings.decided = decided
        self.holdings.note()

    def _memory(self, request: Request) -> Mapping[str, int]:
        state = self._tiers.state
        most = room(state.limits, state.sessions, self.who.id)
        free = most - state.sessions[self.who.id].overflow
        return {"total": most * self._tiers.chunk, "free": free * self._tiers.chunk}

    def _alloc(self, request: Request) -> None:
        new = self.holdings.possible(request)
        self._tiers.apply(Allocated(self.who.id, new.chunks))
        self.holdings.enter(new)
        self.holdings.peak_chunks = max(self.holdings.peak_chunks, self.holdings.committed)
        self.holdings.note()

    def _free(self, request: Request) -> None:
        old = self.holdings.beginning_at(request.uint("first"))
        if old is None:
            raise Refused("EINVAL", f"no allocation begins at chunk {request.uint('first')}")
        self.holdings.migrator.drop_range(old.first, old.chunks)
        self._tiers.apply(Freed(self.who.id, old.chunks))
        self.holdings.remove(old)
        self.holdings.note()

    def _trim(self, request: Request) -> None:
        """Give back what is beyond the first chunks. Asked of the next daemon again, it changes nothing."""
        old, chunks = self.holdings.beginning_at(request.uint("first")), request.uint("chunks")
        if old is None or chunks > old.chunks:
            raise Refused("EINVAL", f"no allocation of {chunks} chunks begins at {request.uint('first')}")
        self.holdings.migrator.drop_range(old.first + chunks, old.chunks - chunks)
        self._tiers.apply(Freed(self.who.id, old.chunks - chunks))
        self.holdings.trim(old, chunks)
        self.holdings.note()

    def _drop(self, request: Request) -> None:
        self.holdings.migrator.drop(request.uint("chunk"))

    async def _move(self, request: Request) -> None:
        chunk, slot = request.uint("chunk"), request.uint("slot")
        if self.holdings.owner(chunk) is None:
            raise Refused("EINVAL", f"chunk {chunk} is not allocated")
        lent = self.holdings.lent.get(request.uint("arena"))
        if lent is None or lent.arena is None or lent.returned:
            raise Refused("EINVAL", f"arena {request.uint('arena')} is not this session's")
        if slot >= lent.arena.slots:
            raise Refused("EINVAL", f"slot {slot}: an arena has {lent.arena.slots}")
        if slot in lent.busy:
            raise Refused("EBUSY", f"slot {slot} of arena {lent.arena.id} is being moved")
        lent.busy.add(slot)
        keep = True
        try:
            if request.op.name == "spill":
                await self.holdings.migrator.spill(chunk, lent.arena, slot)
                answer = {}
            else:
                keep = bool(request.uint("keep")) and self._may_keep()
                await self.holdings.migrator.fetch(chunk, lent.arena, slot)
                answer = {"kept": int(keep)}
        finally:
            lent.done(slot)
        await self._connection.answer(request, answer)
        if not keep:
            # Not before: a shim that has no answer asks the next daemon again. Nor may anybody come in
            # between, and nobody does: answer() returns as soon as the packet is sent.
            self.holdings.migrator.drop(chunk)

    def _may_keep(self) -> bool:
        """Whether an extent may stay, as a second copy, after its chunk was fetched.

        It takes nothing from other sessions: a place below T1 is counted for each chunk that needs one,
        whether an extent is that place already or not. (If the session needs fewer later, those that it
        kept count against others until it gives them up.) And T3 should not be so full that the session's
        next spill finds no room before it has given one up.
        """
        state = self._tiers.state
        share = state.sessions[self.who.id]
        return share.extents <= share.need and 8 * state.extents_used <= 7 * state.limits.extents

    # Arenas

    async def _arena(self, request: Request) -> None:
        id = await self._tiers.reserve_arena(self.who.id)
        lent = self.holdings.lent.setdefault(id, Lent())  # a recall may have been quicker
        self.holdings.note()
        try:
            lent.arena = await self._tiers.open_arena(self.who.id, id)
            await self._connection.answer(request, {"arena": id}, [lent.arena.fd])
        except Refused:
            del self.holdings.lent[id]
            raise
        finally:
            lent.sent.set()

    def recall(self, arena: int) -> None:
        """Have `arena` given back; see tiers.Tenant."""
        if self._absent is not None:
            self._absent.recall(arena)
        elif self._nursery is not None:
            self._nursery.start_soon(self._recall, arena)

    async def _recall(self, id: int) -> None:
        lent = self.holdings.lent.setdefault(id, Lent())
        await lent.sent.wait()
        if lent.arena is None or self._nursery is None:
            return
        if not lent.answered.is_set():  # it was late, and what it will say then is this answer too
            self._nursery.start_soon(self._lose_patience, id, lent.answered)
            return
        lent.answered = trio.Event()
        self._nursery.start_soon(self._lose_patience, id, lent.answered)
        try:
            await self._connection.call("recall", {"arena": id})
        except RemoteError as error:
            if lent.returned:
                return  # on its own: the two requests met
            _log.warning("session %d keeps arena %d: %s", self.who.id, id, error)
            self._tiers.apply(RecallFailed(self.who.id, id))
            return
        except Disconnected:
            return
        finally:
            lent.answered.set()
        if not lent.returned:
            await self._take_back(id, lent, lent.arena)

    async def _lose_patience(self, arena: int, answered: trio.Event) -> None:
        with trio.move_on_after(RECALL_PATIENCE):
            await answered.wait()
            return
        if arena in self._tiers.state.sessions[self.who.id].recalled:
            _log.warning("session %d does not give arena %d back", self.who.id, arena)
            self._tiers.apply(RecallFailed(self.who.id, arena))

    async def _return(self, request: Request) -> None:
        id = request.uint("arena")
        lent = self.holdings.lent.get(id)
        if lent is None or lent.arena is None or lent.returned:
            raise Refused("EINVAL", f"arena {id} is not this session's")
        await self._take_back(id, lent, lent.arena)
        await self._connection.answer(request)

    async def _take_back(self, id: int, lent: Lent, arena: Arena) -> None:
        lent.returned = True
        if lent.busy:  # it should not be, but the kernel writes into it
            await lent.idle.wait()
        lent.arena = None
        await self._tiers.give_back_arena(self.who.id, arena)
        del self.holdings.lent[id]
        self.holdings.note()
