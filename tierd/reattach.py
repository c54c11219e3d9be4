# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions that the daemon before this one served: kept for them until they come back, die or stay away.

What they had is theirs all the while: their extents are given to nobody, and what they were promised
counts. See docs/decisions/0002-reattach.md.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial

import trio

from .ledger import Heir, Ledger
from .nvme.spillset import SpillSet, Stored
from .policy import Inherited, RecallFailed
from .tiers import RECALL_PATIENCE, Tiers

__all__ = ["GRACE", "Absent", "Absentees", "SessionRecords"]

_log = logging.getLogger(__name__)

GRACE = 120.0
"""Seconds after the daemon's start in which a session may come back. A shim that waits for a daemon tries
several times a second, so only one whose process is stopped takes longer, or which has given up."""


class SessionRecords:
    """One session's part of the ledger; see migrate.Records."""

    def __init__(self, ledger: Ledger, session: int) -> None:
        self._ledger = ledger
        self._session = session

    def store(self, chunk: int, stored: Stored) -> None:
        """The chunk is there from now on."""
        self._ledger.store(self._session, chunk, stored.place)

    def forget(self, chunks: Sequence[int]) -> None:
        """T3 no longer holds these chunks."""
        self._ledger.forget(self._session, chunks)


class Absent:
    """A session that is not back yet. A recall waits for it, and others are told no meanwhile."""

    def __init__(self, heir: Heir, stored: Mapping[int, Stored], absentees: Absentees) -> None:
        self.heir = heir
        self.stored = stored
        self.over = trio.Event()  #: nobody waits for it any more
        self.claimed: trio.Event | None = None  #: somebody says to be it: set when that is settled
        self._absentees = absentees

    def recall(self, arena: int) -> None:
        """See tiers.Tenant. Asked again when it is back."""
        self._absentees.recall(self, arena)

    def settle(self, still: Mapping[int, Stored] | None) -> None:
        """It is back or has ended, with None; or it is away again, and this is what it has in T3."""
        assert self.claimed is not None
        claimed, self.claimed = self.claimed, None
        if still is None:
            self._absentees.forget(self)
        else:
            self.stored = still
            self._absentees.wait_again(self)
        claimed.set()


class Absentees:
    """All sessions that are not back yet."""

    def __init__(self, tiers: Tiers, store: SpillSet, ledger: Ledger) -> None:
        self._tiers = tiers
        self._store = store
        self._ledger = ledger
        self._by_key: dict[str, Absent] = {}
        self._missing: dict[int, list[int]] = {}
        self._waiting = True
        self._nursery: trio.Nursery | None = None
        self._recalled: list[tuple[Absent, int]] = []  # before that was there
        places = {heir.id: ledger.chunks(heir.id) for heir in ledger.heirs}
        stored = store.inherit({id: list(chunks.values()) for id, chunks in places.items()})
        for heir in ledger.heirs:
            records = SessionRecords(ledger, heir.id)
            held: dict[int, Stored] = {}
            missing = self._missing[heir.id] = []
            for chunk, its in zip(places[heir.id], stored[heir.id], strict=True):
                if its.lost:  # for whoever asks it is simply not there
                    missing.append(chunk)
                else:
                    held[chunk] = its
                    its.moved = partial(records.store, chunk)
            if missing:
                _log.error(
                    "session %d: %d chunks in T3 are lost with their spill path", heir.id, len(missing)
                )
            absent = self._by_key[heir.key] = Absent(heir, held, self)
            tiers.inherit(Inherited(heir.id, heir.committed, heir.vram, heir.arenas, len(held)), absent)

    def begin(self) -> None:
        """The daemon serves. Before, nothing is written down: the next one may start where this one fails."""
        for session, chunks in self._missing.items():
            self._ledger.forget(session, chunks)  # their extents may be others' soon

    async def run(self) -> None:
        """Give up those that do not come back; until it is cancelled."""
        if self._by_key:
            _log.info("waiting for %d applications to go on", len(self._by_key))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for recalled in self._recalled:
                nursery.start_soon(self._lose_patience, *recalled)
            await self.wait()
            # Those who are just coming back may still be asked for arenas.
            await trio.sleep_forever()

    async def wait(self) -> None:
        """Until nobody is waited for any more."""
        with trio.move_on_after(GRACE):
            async with trio.open_nursery() as nursery:
                for absent in list(self._by_key.values()):
                    nursery.start_soon(self._watch, absent)
        self._waiting = False
        for absent in list(self._by_key.values()):
            self._give_up(absent, f"did not come back within {GRACE:g} s")

    def recall(self, absent: Absent, arena: int) -> None:
        """Nobody is there to give the arena back: others are not kept waiting longer than by who is."""
        if self._nursery is None:
            self._recalled.append((absent, arena))
        else:
            self._nursery.start_soon(self._lose_patience, absent, arena)

    async def _lose_patience(self, absent: Absent, arena: int) -> None:
        with trio.move_on_after(RECALL_PATIENCE):
            await absent.over.wait()
            return
        if not absent.over.is_set() and arena in self._tiers.state.sessions[absent.heir.id].recalled:
            self._tiers.apply(RecallFailed(absent.heir.id, arena))

    async def _watch(self, absent: Absent) -> None:
        """Until it is back or its process has ended."""
        try:
            pidfd = os.pidfd_open(absent.heir.pid) if absent.heir.pid else -1
        except OSError:
            pidfd = -1
        if pidfd < 0:
            if not absent.heir.lives:
                self._give_up(absent, "has ended")
            await absent.over.wait()
            return
        try:
            if not absent.heir.lives:  # the number may be another's by now
                self._give_up(absent, "has ended")
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_for_end, absent, pidfd)
                await absent.over.wait()
                nursery.cancel_scope.cancel()
        finally:
            os.close(pidfd)

    async def _wait_for_end(self, absent: Absent, pidfd: int) -> None:
        await trio.lowlevel.wait_readable(pidfd)
        self._give_up(absent, "has ended")

    def _give_up(self, absent: Absent, why: str) -> None:
        if absent.claimed is not None or absent.heir.key not in self._by_key:
            return  # whoever claims it sees to that
        id = absent.heir.id
        _log.info("session %d (pid %d) %s; what it had is given back", id, absent.heir.pid, why)
        self._ledger.end(id)
        for stored in absent.stored.values():
            self._store.give_back(stored)
        self._tiers.leave(id)
        self.forget(absent)

    def forget(self, absent: Absent) -> None:
        """It needs nobody to wait for it."""
        del self._by_key[absent.heir.key]
        absent.over.set()

    def wait_again(self, absent: Absent) -> None:
        """Who claimed it was gone before it had said what it has."""
        if not absent.heir.lives:
            self._give_up(absent, "has ended")
        elif not self._waiting:
            self._give_up(absent, f"did not come back within {GRACE:g} s")

    async def claim(self, key: str, *, pid: int, uid: int) -> Absent | None:
        """The session that has this key, for its own process; None for anybody else.

        It is the caller's, until Absent.settle(). Waits for an earlier claim to be settled: one that its
        process has given up may be seen to be so only after this.
        """
        while (absent := self._find(key, pid, uid)) is not None:
            if absent.claimed is None:
                absent.claimed = trio.Event()
                return absent
            await absent.claimed.wait()
        return None

    def _find(self, key: str, pid: int, uid: int) -> Absent | None:
        for known, absent in self._by_key.items():
            if hmac.compare_digest(known.encode(), key.encode()):  # so that nobody finds out a key by timing
                heir = absent.heir
                if (heir.pid, heir.uid) == (pid, uid) and heir.lives:
                    return absent
                _log.warning("pid %d of user %d claims session %d", pid, uid, heir.id)
        return None
