# SPDX-License-Identifier: GPL-2.0-or-later
"""T2 and T3 as the sessions share them: the policy's state, and the hands that do what it says."""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

import trio

from .ahead import ArenasAhead
from .arena import Arena, ArenaError, ArenaPool, NotAnArenaError
from .capacity import Limits
from .nvme.errors import NoSpace
from .nvme.path import SpillPath
from .nvme.spillset import SpillSet
from .policy import (
    AheadOver,
    ArenaAsked,
    ArenaOpened,
    ArenaReturned,
    ArenaWaitOver,
    BudgetTurned,
    Deny,
    Discard,
    Event,
    ExtentsChanged,
    ExtentsReturned,
    ExtentsWithdrawn,
    Grant,
    Inherited,
    Joined,
    Left,
    MakeAhead,
    RamSpare,
    RamWanted,
    Recall,
    Refused,
    SpillAsked,
    State,
    apply,
)

__all__ = ["RECALL_PATIENCE", "Tenant", "Tiers"]

_log = logging.getLogger(__name__)

RECALL_PATIENCE = 10.0
"""Seconds that a session has to give an arena back, and that a request for one waits for it: a process
that is stopped never does."""


class Tenant(Protocol):
    """What the tiers ask of a session."""

    def recall(self, arena: int, /) -> None:
        """Begin to have the arena given back, which ends in an ArenaReturned or RecallFailed event.

        A session that is ending need do nothing: its Left event says it all.
        """


class _Wait:
    """A session's request that waits for an arena; `arena` is its id once granted, None if denied."""

    __slots__ = ("arena", "over")

    def __init__(self) -> None:
        self.over = trio.Event()
        self.arena: int | None = None

    def end(self, arena: int | None) -> None:
        self.arena = arena
        self.over.set()


class Tiers:
    """The state of all sessions. Changes only in apply(), which never waits."""

    def __init__(self, pool: ArenaPool, store: SpillSet) -> None:
        self._pool = pool
        self.store = store
        slots = pool.arena_bytes // pool.chunk
        self._state = State(Limits(pool.limit, slots, store.total))
        self._tenants: dict[int, Tenant] = {}
        self._waits: dict[int, deque[_Wait]] = {}
        self._returned = 0  # arenas that went back to the system because RAM was short
        self._ahead = ArenasAhead(self._make, self._close, self._give_up)
        self.make_ahead = self._ahead.run

    @property
    def state(self) -> State:
        """The policy's state now."""
        self._look()
        return self._state

    @property
    def chunk(self) -> int:
        """Bytes of a chunk."""
        return self._pool.chunk

    @property
    def arena_bytes(self) -> int:
        """Bytes of one arena."""
        return self._pool.arena_bytes

    def join(self, id: int, tenant: Tenant) -> None:
        """A session begins."""
        self.apply(Joined(id))
        self._tenants[id] = tenant
        self._waits[id] = deque()

    def inherit(self, session: Inherited, tenant: Tenant) -> None:
        """A session of the daemon before this one, which has what it has; `tenant` stands for it."""
        self.apply(session)
        self._tenants[session.session] = tenant
        self._waits[session.session] = deque()

    def take_over(self, id: int, tenant: Tenant) -> None:
        """It is back: from now on `tenant` is asked."""
        self._tenants[id] = tenant

    def leave(self, id: int) -> None:
        """A session ended; its arenas are closed, its extents given back and no request waits."""
        del self._tenants[id]
        assert not self._waits.pop(id)
        self.apply(Left(id))

    def apply(self, event: Event) -> None:
        """Let `event` happen and begin what follows. Raises policy.Refused; nothing happened then."""
        self._look()
        self._step(event)

    def _look(self) -> None:
        """What T3 has become by itself: extents fail, paths are added, a day begins."""
        total, spent = self.store.total, self.store.budget_spent
        if total != self._state.limits.extents:
            self._step(ExtentsChanged(total))
        if spent is not self._state.budget_spent:
            self._step(BudgetTurned(spent))

    def _step(self, event: Event) -> None:
        before = self._state
        self._state, actions = apply(before, event)
        if isinstance(event, ArenaReturned | Left):
            closed = before.held_arenas - self._state.held_arenas
            self._returned += min(max(0, -before.free_arenas), closed)
        for action in actions:
            match action:
                case Grant(id, arena):
                    self._waits[id].popleft().end(arena)
                case Deny(id):
                    self._waits[id].popleft().end(None)
                case Recall(id, arena):
                    _log.info("session %d is asked to give arena %d back", id, arena)
                    self._tenants[id].recall(arena)
                case MakeAhead(arena):
                    self._ahead.begin(arena)
                case Discard(arena):
                    self._returned += isinstance(event, RamWanted)
                    self._ahead.discard(arena)

    def reserve_extent(self, id: int) -> None:
        """A session wants one more extent. Raises policy.Refused."""
        self.apply(SpillAsked(id))

    def return_extents(self, id: int, count: int) -> None:
        """A session gave extents back."""
        self.apply(ExtentsReturned(id, count))

    def withdraw(self, path: SpillPath) -> None:
        """Begin to move what a spill path holds elsewhere. Raises policy.Refused: ENOSPC."""
        if path.counts:
            self.apply(ExtentsWithdrawn(path.extents.total))
        self.store.drain(path)

    # While RAM is short

    def give_way(self, size: int, *, again: bool) -> None:
        """Have `size` bytes of arenas given back; with `again`, by those too that refused before."""
        arenas = -(-size // self.arena_bytes)
        existing = self._state.existing_arenas
        if arenas or again:
            self.apply(RamWanted(min(arenas, existing), again))

    def grow(self, size: int) -> None:
        """T2 may have `size` bytes more than it has now."""
        self.apply(RamSpare(size // self.arena_bytes))

    @property
    def limited(self) -> bool:
        """Whether T2 should do with less than it may have otherwise."""
        return self._state.short > 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all arenas that there are."""
        return self._state.existing_arenas * self.arena_bytes

    @property
    def arenas(self) -> tuple[int, int]:
        """How many there are: of sessions, and those that nobody has asked for."""
        ids = [arena.id for arena in self._pool]
        ahead = sum(id in self._ahead for id in ids)
        return len(ids) - ahead, ahead

    @property
    def withheld_bytes(self) -> int:
        """Bytes of T2 that are not to be had now."""
        return self._state.withheld * self.arena_bytes

    @property
    def returned_bytes(self) -> int:
        """Bytes of arenas that went back to the system because RAM was short."""
        return self._returned * self.arena_bytes

    @property
    def spill_bytes(self) -> tuple[int, int]:
        """Bytes of T3, and those in use."""
        state = self._state
        return state.limits.extents * self.chunk, min(state.extents_used, state.limits.extents) * self.chunk

    async def reserve_arena(self, id: int) -> int:
        """The id of an arena that the session may have, after recalling one from another if need be.

        The caller then makes it with open_arena(). Raises policy.Refused: ENOSPC.
        """
        wait = _Wait()
        self._waits[id].append(wait)
        try:
            self.apply(ArenaAsked(id))
        except Refused:
            self._waits[id].remove(wait)
            raise
        try:
            with trio.move_on_after(RECALL_PATIENCE):
                await wait.over.wait()
        except trio.Cancelled:
            if wait.arena is not None:
                self._unopened(id, wait.arena)
            raise
        finally:
            if not wait.over.is_set():
                self._waits[id].remove(wait)
                self.apply(ArenaWaitOver(id))
        if wait.arena is None:
            raise Refused("ENOSPC", "no arena was given back in time")
        return wait.arena

    async def open_arena(self, session: int, id: int) -> Arena:
        """The arena for a reserved id, its pages allocated and registered. Raises policy.Refused."""
        try:
            arena = await self._ahead.take(id)
            if arena is None:
                arena = await self._make(id)
        except BaseException as error:
            self._unopened(session, id)
            if isinstance(error, ArenaError | NoSpace | OSError):
                raise Refused("ENOSPC", str(error)) from error
            raise
        if self._ahead.running:
            self.apply(ArenaOpened(session))
        return arena

    async def _make(self, id: int) -> Arena:
        """Raises ArenaError, NoSpace and OSError."""
        # Not abandoned when cancelled: what the thread makes has to be given back.
        arena = await trio.to_thread.run_sync(self._pool.create, id)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # at the daemon's end rings may be closed by now
            self.store.add_arena(arena)
        except BaseException:
            self._pool.close(arena)
            raise
        return arena

    def _unopened(self, session: int, id: int) -> None:
        """The session does not get the arena that it was granted."""
        self._ahead.discard(id)
        self.apply(ArenaReturned(session, id))

    def _give_up(self, id: int) -> bool:
        """No session gets the arena that was made ahead; False: one was granted it before."""
        if self._state.ahead is None or self._state.ahead.arena != id:
            return False
        self.apply(AheadOver(id))
        return True

    async def adopt_arena(self, id: int, fd: int) -> Arena:
        """An arena that a session has had from the daemon before this one. Raises policy.Refused.

        The descriptor is no longer the caller's.
        """
        try:
            with trio.CancelScope(shield=True):  # from here on only the thread knows of the descriptor
                arena = await trio.to_thread.run_sync(self._pool.adopt, id, fd)
            try:
                self.store.add_arena(arena)
            except BaseException:
                self._pool.close(arena)
                raise
        except (ArenaError, NoSpace, OSError) as error:
            name = "EINVAL" if isinstance(error, NotAnArenaError) else "ENOMEM"
            raise Refused(name, f"arena {id} cannot be adopted: {error}") from error
        return arena

    def close_arena(self, arena: Arena) -> None:
        """Unregister and close an arena that nothing moves into or out of. The policy is not told."""
        self.store.remove_arena(arena)
        self._pool.close(arena)

    async def give_back_arena(self, session: int, arena: Arena) -> None:
        """The same without keeping others waiting, and the policy is told. Not to be cancelled in between."""
        await self._close(arena)
        self.apply(ArenaReturned(session, arena.id))

    async def _close(self, arena: Arena) -> None:
        self.store.remove_arena(arena)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._pool.close, arena)
