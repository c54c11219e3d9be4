# SPDX-License-Identifier: GPL-2.0-or-later
"""What fits into T2 and T3, and how T2's arenas are best shared out: pure arithmetic.

Chunks that do not fit a session's VRAM slots are its overflow. Moving a chunk between tiers when all
are full takes TRANSIT free arena slots, so a session with overflow needs overflow + TRANSIT places,
TRANSIT of them in T2. So does one that has chunks in T3 though they would all fit VRAM by now: they come
up through T2. Arenas belong to one session at a time, so T2 is shared out in whole arenas, T3
in single extents.

A *witness* is a number of arenas for each session such that what does not fit them fits T3, beside
what T3 already holds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

__all__ = ["TRANSIT", "Limits", "Session", "extents_needed", "feasible", "lone_capacity", "room", "targets"]

TRANSIT = 2
"""Arena slots a session with overflow needs beyond it: one for the chunk on its way up, one for the
victim on its way down."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What there is to share out."""

    arenas: int  #: arenas of T2
    arena_slots: int  #: slots of one arena, at least 1
    extents: int  #: extents of T3


@dataclass(frozen=True, slots=True)
class Session:
    """One session's share."""

    committed: int = 0  #: chunks of all its allocations
    vram: int = 0  #: T1 slots
    arenas: tuple[int, ...] = ()  #: ids of arenas it has, oldest first
    recalled: frozenset[int] = frozenset()  #: those it was asked to give back
    unwilling: bool = False  #: it did not give back what it was last asked for
    extents: int = 0  #: extents that hold its chunks, or are about to

    def with_extents(self, extents: int) -> Session:
        """The same with so many extents; at every request, and replace() takes five times as long."""
        return Session(self.committed, self.vram, self.arenas, self.recalled, self.unwilling, extents)

    @property
    def overflow(self) -> int:
        """Chunks that T1 cannot hold."""
        return max(0, self.committed - self.vram)

    @property
    def need(self) -> int:
        """Places below T1 that it must be able to have."""
        return self.overflow + TRANSIT if self.moves else 0

    @property
    def moves(self) -> bool:
        """Whether its chunks have to move through T2."""
        return self.overflow > 0 or self.extents > 0


def extents_needed(limits: Limits, sessions: Iterable[Session]) -> int | None:
    """Fewest extents with which all `sessions` have a place, those in use included; None if none do.

    An arena is worth most to a session that fills it: whole arenas first, then the largest rests.
    A session's gain from its n-th arena never rises with n, so this greedy choice is the best one.
    """
    base = -(-TRANSIT // limits.arena_slots)
    arenas, total, whole = limits.arenas, 0, 0
    rests: list[int] = []
    slots = limits.arena_slots
    beyond = TRANSIT - base * slots
    for session in sessions:
        # At every request for every session, so without a call: need and overflow take most of the time.
        held = session.extents
        total += held
        overflow = session.committed - session.vram
        if overflow > 0 or held:
            arenas -= base
            rest = overflow + beyond - held if overflow > 0 else 0
            if rest > 0:
                total += rest
                whole += rest // slots
                rests.append(rest % slots)
    if arenas < 0:
        return None
    if arenas <= whole:
        return total - arenas * slots
    rests.sort(reverse=True)
    return total - whole * slots - sum(rests[: arenas - whole])


def feasible(limits: Limits, sessions: Mapping[int, Session]) -> bool:
    """Whether a witness exists: every chunk of every session has a place."""
    needed = extents_needed(limits, sessions.values())
    return needed is not None and needed <= limits.extents


def room(limits: Limits, sessions: Mapping[int, Session], id: int) -> int:
    """The largest overflow, chunks, that session `id` could have while all others keep theirs."""
    now = sessions[id]

    def fits(overflow: int) -> bool:
        return feasible(limits, {**sessions, id: replace(now, committed=now.vram + overflow)})

    low, high = now.overflow, limits.arenas * limits.arena_slots + limits.extents
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def lone_capacity(limits: Limits) -> tuple[int, int]:
    """Slots of T2 and extents of T3 that hold a session's overflow when it is the only one."""
    slots = limits.arenas * limits.arena_slots
    return (slots - TRANSIT, limits.extents) if slots >= TRANSIT else (0, 0)


def targets(limits: Limits, sessions: Mapping[int, Session]) -> dict[int, int]:
    """Arenas that each session should have in the end: a witness, the fairest if that is one.

    Fair is max-min: nobody gets an arena it has no use for, and nobody could get more except from
    somebody who has no more than he. Where T3 is too small for that, arenas go where they save most
    extents, ties to whoever has fewest. An arena that nobody needs is nobody's target.
    """
    slots = limits.arena_slots
    base = -(-TRANSIT // slots)
    have = {id: base if s.moves else 0 for id, s in sessions.items()}
    left = limits.arenas - sum(have.values())

    fair = dict(have)
    _share_out(fair, left, {id: -(-s.need // slots) for id, s in sessions.items()})
    extents = sum(max(s.extents, s.need - fair[id] * slots) for id, s in sessions.items())
    if extents <= limits.extents:
        return fair

    rest = {id: max(0, s.need - s.extents - base * slots) for id, s in sessions.items() if s.moves}
    left -= _share_out(have, left, {id: base + rest[id] // slots for id in rest})
    for id in sorted(rest, key=lambda id: (-(rest[id] % slots), have[id], id))[: max(0, left)]:
        if rest[id] % slots:
            have[id] += 1
    return have


def _share_out(have: dict[int, int], arenas: int, wanted: Mapping[int, int]) -> int:
    """Raise `have` to at most `wanted`, one of `arenas` at a time to whoever has fewest; how many went."""
    given = 0
    queue = [(have[id], id) for id in wanted if have[id] < wanted[id]]
    heapq.heapify(queue)
    while queue and given < arenas:
        count, id = queue[0]
        have[id] = count + 1
        given += 1
        if have[id] < wanted[id]:
            heapq.heapreplace(queue, (have[id], id))
        else:
            heapq.heappop(queue)
    return given
