# SPDX-License-Identifier: GPL-2.0-or-later
"""What one session has: allocations, arenas, chunks in T3; kept in the ledger, and shown."""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import trio

from .arena import Arena
from .ledger import Heir, Ledger
from .migrate import Migrator, MigratorStatistics
from .model import AllocationSnapshot, Decisions, EndedSession, SessionSnapshot, Tier
from .policy import Refused
from .reattach import SessionRecords
from .statemap import StateMap
from .tiers import Tiers
from .wire import MAX_STATE_CHUNKS, Request

__all__ = ["Allocation", "Holdings", "Identity", "Lent"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the session is: its number, and its process as the kernel vouches for it."""

    id: int
    pid: int
    uid: int
    name: str
    pidfd: int  #: readable once the process is gone; -1 where the kernel cannot say
    vouched_pid: int  #: the same as `pid`, or 0 where the kernel does not tell
    key: str  #: with which it may go on with the next daemon; empty: it cannot
    started: int  #: see ledger.process_start()


@dataclass(frozen=True, slots=True)
class Allocation:
    first: int
    chunks: int
    bytes: int
    address: int


class Lent:
    """An arena of this session, from the moment the policy grants it."""

    __slots__ = ("answered", "arena", "busy", "idle", "returned", "sent")

    def __init__(self) -> None:
        self.arena: Arena | None = None  # None while it is made or closed, and for ever if making it fails
        self.answered = trio.Event()  # the shim has answered the last recall, or there was none
        self.answered.set()
        self.sent = trio.Event()  # the shim knows of it, or it could not be made
        self.returned = False  # the shim has given it back
        self.busy: set[int] = set()  # slots that a transfer uses
        self.idle = trio.Event()  # set when the last of them is done after it was returned

    def done(self, slot: int) -> None:
        """The transfer that used `slot` is over."""
        self.busy.discard(slot)
        if self.returned and not self.busy:
            self.idle.set()


class Holdings:
    """What the session `who` has. Whoever made it releases it: the migrator, the arenas, the map."""

    def __init__(
        self, who: Identity, state: StateMap, tiers: Tiers, ledger: Ledger, heir: Heir | None = None
    ) -> None:
        """`heir`: what the ledger says of it, of a session of the daemon before this one."""
        self.who = who
        self.map = state
        self.migrator = Migrator(
            tiers.store,
            reserve=lambda: tiers.reserve_extent(who.id),
            returned=lambda count: tiers.return_extents(who.id, count),
            records=SessionRecords(ledger, who.id) if who.key else None,
        )
        self.lent: dict[int, Lent] = {}
        self.vram_bytes = heir.vram_bytes if heir else 0
        self.decided = heir.decided if heir else Decisions()
        self.peak_chunks = 0
        self.allocated = 0  # chunks of its allocations
        self._tiers = tiers
        self._ledger = ledger
        self._allocations: dict[int, Allocation] = {}
        self._firsts: list[int] = []  # the keys of _allocations, sorted
        self._end = 0  # chunks of the map from here on were never allocated
        self._began = time.monotonic()

    # Allocations

    @property
    def committed(self) -> int:
        """Chunks that it was promised."""
        return self._tiers.state.sessions[self.who.id].committed

    def possible(self, request: Request) -> Allocation:
        """The allocation that `request` asks for, if there is nothing in its way. Raises Refused."""
        new = Allocation(*map(request.uint, ("first", "chunks", "bytes", "address")))
        after = new.first + new.chunks
        if after > self.map.chunks:
            raise Refused("EINVAL", f"chunks {new.first} to {after - 1}: the map has {self.map.chunks}")
        if new.bytes > new.chunks * self._tiers.chunk:
            raise Refused("EINVAL", f"{new.bytes} bytes do not fit {new.chunks} chunks")
        at = bisect.bisect_left(self._firsts, new.first)
        if (at < len(self._firsts) and self._firsts[at] < after) or self.owner(new.first) is not None:
            raise Refused("EEXIST", f"chunks {new.first} to {after - 1} are allocated already")
        return new

    def enter(self, new: Allocation) -> None:
        """It is allocated."""
        bisect.insort(self._firsts, new.first)
        self._allocations[new.first] = new
        self.allocated += new.chunks
        self._end = max(self._end, new.first + new.chunks)

    def beginning_at(self, first: int) -> Allocation | None:
        """The allocation whose first chunk this is."""
        return self._allocations.get(first)

    def remove(self, old: Allocation) -> None:
        """It is freed."""
        del self._allocations[old.first]
        self.allocated -= old.chunks
        del self._firsts[bisect.bisect_left(self._firsts, old.first)]

    def trim(self, old: Allocation, chunks: int) -> None:
        """It has so many left, from its first on."""
        self.allocated -= old.chunks - chunks
        size = min(old.bytes, chunks * self._tiers.chunk)
        self._allocations[old.first] = replace(old, chunks=chunks, bytes=size)

    def owner(self, chunk: int) -> Allocation | None:
        """The allocation in which the chunk lies."""
        at = bisect.bisect_right(self._firsts, chunk) - 1
        if at < 0:
            return None
        below = self._allocations[self._firsts[at]]
        return below if chunk < below.first + below.chunks else None

    # For the next daemon

    def note(self) -> None:
        """Write down what the session was promised and has; before it is told, so it never has more."""
        if not self.who.key:
            return
        state = self._tiers.state.sessions[self.who.id]
        self._ledger.session(
            Heir(
                id=self.who.id,
                key=self.who.key,
                uid=self.who.uid,
                pid=self.who.vouched_pid,
                started=self.who.started,
                name=self.who.name,
                committed=state.committed,
                vram=state.vram,
                vram_bytes=self.vram_bytes,
                decided=self.decided,
                arenas=state.arenas,
            )
        )

    # What there is to see

    def snapshot(self, *, allocations: bool) -> SessionSnapshot:
        """The session now; its allocations without their maps, if wanted."""
        state = self._tiers.state.sessions[self.who.id]
        moved = self.migrator.statistics()
        return SessionSnapshot(
            id=self.who.id,
            pid=self.who.pid,
            uid=self.who.uid,
            name=self.who.name,
            vram_slots=state.vram,
            committed_chunks=state.committed,
            resident=self._resident(),
            counters=self.map.counters(),
            allocations=tuple(
                AllocationSnapshot(a.address, a.bytes, a.first, a.chunks, "")
                for a in (self._allocations.values() if allocations else ())
            ),
            written=moved.written,
            read=moved.read,
            vram_bytes=self.vram_bytes,
            decided=self.decided,
        )

    def last_snapshot(self) -> EndedSession:
        """The session at its end, before anything is released."""
        counters = self.map.counters()
        moved = self.migrator.statistics()
        return EndedSession(
            id=self.who.id,
            pid=self.who.pid,
            uid=self.who.uid,
            name=self.who.name,
            seconds=time.monotonic() - self._began,
            peak_chunks=self.peak_chunks,
            resident=self._most(counters, moved),
            counters=counters,
            written=moved.written,
            read=moved.read,
            vram_bytes=self.vram_bytes,
            decided=self.decided,
        )

    def _resident(self) -> Mapping[Tier, int]:
        """Bytes in each tier now."""
        chunk = self._tiers.chunk
        resident = {tier: n * chunk for tier, n in self.map.resident(self._end).items()}
        # Of T3 the daemon knows better: the shim writes its letters before and after the transfers.
        resident[Tier.T3] = self.migrator.statistics().held * chunk
        return resident

    def _most(self, counters: Mapping[str, int], moved: MigratorStatistics) -> Mapping[Tier, int]:
        """Bytes in each tier when that tier held most: programs free everything before they end.

        Kept by whoever changes them. Looking at the state map now and then missed what an allocation
        had: the shim has cleared its letters before its free comes.
        """
        # What the shim writes is not to be relied on, and status could not be packed for anybody.
        slots = [min(counters[name], MAX_STATE_CHUNKS) for name in ("vram_slots_most", "arena_slots_most")]
        chunks = zip(Tier, (*slots, moved.most_held), strict=True)
        return {tier: count * self._tiers.chunk for tier, count in chunks}

    def chunk_map(self, first: int, chunks: int) -> str:
        """One ChunkState letter a chunk, as the shim last wrote them."""
        return self.map.letters(first, chunks)
