# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may have how much of T2 and T3: pure transitions from state and event to state and actions.

No I/O, no clock, no trio. The daemon reports what happened as an event, apply() says what becomes of
the state and what has to be done, or raises Refused.

What is promised: an event that would leave no witness (see capacity) is refused; hence

- everything that was admitted has a place, whatever the application does later (never overcommitted);
- targets() is such a witness, and arenas are recalled only from sessions that hold more than their
  target. The spills with which such a session empties an arena are admitted by the same rule, so a
  recall can always be obeyed, and a session below its target gets its arenas (no starvation).

When RAM is short (RamWanted), T2 does without some of its arenas, as many as promises allow. Targets
shrink with it, so whoever holds most beyond what it should have in the end gives first: of equals the
session that came last, and of its arenas the youngest. How idle a session is, nobody here knows; one
that fits its VRAM has no target at all and so gives everything. A session that refuses keeps its arena;
until it gives one, or RAM is not short any more, others that could do with less are asked instead.

Making an arena takes long, and so does taking it into use. So while a session does the one, another is
made ahead of its next request (MakeAhead). It counts against nobody: whoever is granted an arena next gets
it, and it is there only while one is free, RAM is not short and the session seems to go on.

The alternative, letting allocations reserve the arenas and extents they will use, was rejected: an
idle session's reservation would keep RAM empty while a busy one streams from NVMe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import assert_never

from .capacity import TRANSIT, Limits, Session, extents_needed, feasible, room, targets

__all__ = [
    "Action",
    "Ahead",
    "AheadOver",
    "Allocated",
    "ArenaAsked",
    "ArenaOpened",
    "ArenaReturned",
    "ArenaWaitOver",
    "BudgetTurned",
    "Deny",
    "Discard",
    "Event",
    "ExtentsChanged",
    "ExtentsReturned",
    "ExtentsWithdrawn",
    "Freed",
    "Grant",
    "Inherited",
    "Joined",
    "Left",
    "MakeAhead",
    "RamSpare",
    "RamWanted",
    "Recall",
    "RecallFailed",
    "Refused",
    "SpillAsked",
    "State",
    "VramSet",
    "apply",
]


class Refused(Exception):
    """An event that cannot be: `name` is an errno name, the text is for people."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


# State


@dataclass(frozen=True, slots=True)
class Ahead:
    """An arena that is made, or being made, and nobody's."""

    arena: int
    session: int  #: that seems to ask for it next


@dataclass(frozen=True, slots=True)
class State:
    """Everything the policy knows. Make new ones with apply()."""

    limits: Limits  #: what there is now, without the arenas that are withheld
    sessions: Mapping[int, Session] = field(default_factory=lambda: MappingProxyType({}))
    waiting: tuple[int, ...] = ()  #: sessions that wait for an arena, in order; no arena is free then
    next_arena: int = 1
    budget_spent: bool = False  #: T3 has been written as much today as it should be
    short: int = 0  #: arenas that T2 should do without while RAM is short
    withheld: int = 0  #: those of them that it can do without and keep what was promised
    ahead: Ahead | None = None  #: one of the free arenas

    def with_sessions(self, sessions: Mapping[int, Session]) -> State:
        """The same with other sessions; at every request, and replace() takes twice as long."""
        return State(
            self.limits,
            sessions,
            self.waiting,
            self.next_arena,
            self.budget_spent,
            self.short,
            self.withheld,
            self.ahead,
        )

    @property
    def whole(self) -> Limits:
        """What there is when RAM is not short."""
        return replace(self.limits, arenas=self.limits.arenas + self.withheld)

    @property
    def held_arenas(self) -> int:
        """Arenas that sessions have."""
        return sum(len(s.arenas) for s in self.sessions.values())

    @property
    def existing_arenas(self) -> int:
        """The same, and the one that is made ahead."""
        return self.held_arenas + (self.ahead is not None)

    @property
    def free_arenas(self) -> int:
        """Arenas that no session has; below zero: so many are to come back, as RAM is short."""
        return self.limits.arenas - self.held_arenas

    @property
    def extents_used(self) -> int:
        """Extents that sessions have."""
        return sum(s.extents for s in self.sessions.values())


# Events


@dataclass(frozen=True, slots=True)
class Joined:
    session: int


@dataclass(frozen=True, slots=True)
class Inherited:
    """A session of the daemon before this one, with what it was promised then and has."""

    session: int
    committed: int
    vram: int
    arenas: tuple[int, ...]
    extents: int


@dataclass(frozen=True, slots=True)
class Left:
    """The session ended; its arenas are closed and its extents given back."""

    session: int


@dataclass(frozen=True, slots=True)
class VramSet:
    session: int
    slots: int


@dataclass(frozen=True, slots=True)
class Allocated:
    session: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Freed:
    session: int
    chunks: int


@dataclass(frozen=True, slots=True)
class SpillAsked:
    """The session wants one more extent."""

    session: int


@dataclass(frozen=True, slots=True)
class ExtentsReturned:
    session: int
    count: int


@dataclass(frozen=True, slots=True)
class ExtentsChanged:
    """T3 became smaller (extents that failed) or larger."""

    extents: int


@dataclass(frozen=True, slots=True)
class ExtentsWithdrawn:
    """So many extents are to be taken out of use, if what lies below T1 still has a place then."""

    count: int


@dataclass(frozen=True, slots=True)
class BudgetTurned:
    """What T3 should be written a day at most is used up, or a new day has begun."""

    spent: bool


@dataclass(frozen=True, slots=True)
class ArenaAsked:
    session: int


@dataclass(frozen=True, slots=True)
class ArenaOpened:
    """An arena that was granted is there, and the session is about to be told."""

    session: int


@dataclass(frozen=True, slots=True)
class AheadOver:
    """This one was not wanted for long, or could not be made. If it is somebody's by now, that stays."""

    arena: int


@dataclass(frozen=True, slots=True)
class ArenaReturned:
    """The arena is closed, after a recall or because it could not be made."""

    session: int
    arena: int


@dataclass(frozen=True, slots=True)
class RecallFailed:
    """The session did not give the arena back, or not in time. It keeps it, or returns it later."""

    session: int
    arena: int


@dataclass(frozen=True, slots=True)
class ArenaWaitOver:
    """The session no longer waits for an arena."""

    session: int


@dataclass(frozen=True, slots=True)
class RamWanted:
    """RAM is short: so many of the arenas that exist are to be given back.

    Said again, it means what is still wanted, those on their way back included.
    """

    arenas: int
    again: bool = False  #: ask those too that have refused since RAM became short


@dataclass(frozen=True, slots=True)
class RamSpare:
    """RAM is not short any more: so many arenas more than exist could be made."""

    arenas: int


Event = (
    Joined
    | Inherited
    | Left
    | VramSet
    | Allocated
    | Freed
    | SpillAsked
    | ExtentsReturned
    | ExtentsChanged
    | ExtentsWithdrawn
    | BudgetTurned
    | ArenaAsked
    | ArenaOpened
    | AheadOver
    | ArenaReturned
    | RecallFailed
    | ArenaWaitOver
    | RamWanted
    | RamSpare
)


# Actions


@dataclass(frozen=True, slots=True)
class Grant:
    """Give the session the arena with this id: a new one, or the one that was made ahead."""

    session: int
    arena: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Ask the session to give the arena back."""

    session: int
    arena: int


@dataclass(frozen=True, slots=True)
class Deny:
    """One of the session's waiting requests for an arena has no prospect any more."""

    session: int


@dataclass(frozen=True, slots=True)
class MakeAhead:
    """Make an arena with this new id, for whoever is granted it."""

    arena: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the arena that was made ahead, or see that it is closed once it is made."""

    arena: int


Action = Grant | Recall | Deny | MakeAhead | Discard


# Transitions


def _with(state: State, id: int, session: Session | None) -> State:
    sessions = dict(state.sessions)
    if session is None:
        del sessions[id]
    else:
        sessions[id] = session
    return state.with_sessions(MappingProxyType(sessions))


def _feasible(state: State) -> bool:
    return feasible(state.limits, state.sessions)


def _targets(state: State) -> dict[int, int]:
    return targets(state.limits, state.sessions)


Transition = tuple[State, tuple[Action, ...]]


def _joined(state: State, event: Joined) -> Transition:
    assert event.session not in state.sessions
    return _with(state, event.session, Session()), ()


def _inherited(state: State, event: Inherited) -> Transition:
    assert event.session not in state.sessions
    session = Session(event.committed, event.vram, event.arenas, extents=event.extents)
    # No two arenas that anybody has may have one id.
    following = max((state.next_arena, *(arena + 1 for arena in event.arenas)))
    return replace(_with(state, event.session, session), next_arena=following), ()


def _left(state: State, event: Left) -> Transition:
    waiting = tuple(id for id in state.waiting if id != event.session)
    return _hand_out(replace(_with(state, event.session, None), waiting=waiting))


def _vram_set(state: State, event: VramSet) -> Transition:
    session = state.sessions[event.session]
    after = _with(state, event.session, replace(session, vram=event.slots))
    if event.slots < session.vram and after.sessions[event.session].overflow and not _feasible(after):
        raise Refused(
            "ENOMEM",
            f"with {event.slots} VRAM slots, {session.committed - event.slots} chunks of this session "
            "would have to lie in RAM or on NVMe, and there is not that much left",
        )
    return after, ()


def _allocated(state: State, event: Allocated) -> Transition:
    session = state.sessions[event.session]
    grown = replace(session, committed=session.committed + event.chunks)
    after = _with(state, event.session, grown)
    # What VRAM holds alone needs nothing of us, even when T3 has failed under the others.
    if grown.overflow > session.overflow and state.budget_spent:
        # What was promised must be kept, whatever it writes; no more is promised today.
        unwritten = replace(state.limits, extents=state.extents_used)
        if not feasible(unwritten, after.sessions):
            raise Refused("ENOMEM", "only NVMe has room for that, and its daily budget of writes is used up")
    if grown.overflow and not _feasible(after):
        below = room(state.limits, state.sessions, event.session) - session.overflow
        left = max(0, session.vram - session.committed) + below
        why = " while the system is short of RAM" if state.withheld else ""
        raise Refused("ENOMEM", f"{event.chunks} chunks are wanted, the tiers have room for {left}{why}")
    return after, ()


def _freed(state: State, event: Freed) -> Transition:
    session = state.sessions[event.session]
    assert 0 <= event.chunks <= session.committed
    return _with(state, event.session, replace(session, committed=session.committed - event.chunks)), ()


def _spill_asked(state: State, event: SpillAsked) -> Transition:
    session = state.sessions[event.session]
    if state.extents_used >= state.limits.extents:
        raise Refused("ENOSPC", "every extent is in use")
    if state.budget_spent and state.free_arenas > 0:
        raise Refused("ENOSPC", "the daily budget of writes is used up, and RAM has room")
    after = _with(state, event.session, session.with_extents(session.extents + 1))
    if not _feasible(after):
        raise Refused("ENOSPC", "the extents left are kept for chunks that have no other place")
    return after, ()


def _extents_returned(state: State, event: ExtentsReturned) -> Transition:
    session = state.sessions[event.session]
    assert 0 <= event.count <= session.extents
    return _with(state, event.session, session.with_extents(session.extents - event.count)), ()


def _extents_changed(state: State, event: ExtentsChanged) -> Transition:
    return replace(state, limits=replace(state.limits, extents=event.extents)), ()


def _extents_withdrawn(state: State, event: ExtentsWithdrawn) -> Transition:
    left = state.limits.extents - event.count
    after = replace(state, limits=replace(state.limits, extents=left))
    needed = extents_needed(after.limits, after.sessions.values())
    if needed is None or needed > left:
        raise Refused(
            "ENOSPC",
            f"applications may need {needed or state.extents_used} extents, and {left} would be left",
        )
    return after, ()


def _budget_turned(state: State, event: BudgetTurned) -> Transition:
    return replace(state, budget_spent=event.spent), ()


def _arena_asked(state: State, event: ArenaAsked) -> Transition:
    if state.free_arenas > 0:
        return _grant(state, event.session)
    queued = replace(state, waiting=(*state.waiting, event.session))
    if state.free_arenas + _recalls(state) > len(state.waiting):
        # One will be free when it is back: its asker has given up, or RAM is not short any more.
        return queued, ()
    wanted = _targets(state)
    effective = _effective(state)
    if effective[event.session] >= wanted[event.session]:
        raise Refused("ENOSPC", "T2 has no more arenas for this session")
    displaced = next((id for id in reversed(state.waiting) if effective[id] > wanted[id]), None)
    if displaced is not None:
        # It asked for more than its share, or its need has fallen since. Its place is the asker's now.
        return _no_longer_waiting(queued, displaced), (Deny(displaced),)
    # As many arenas are held or promised as there are, so when one has less than its target another has more.
    above = {id: n - wanted[id] for id, n in effective.items() if n > wanted[id]}
    return _recall(queued, max(above, key=lambda id: (above[id], id)))


def _effective(state: State) -> dict[int, int]:
    """Arenas that each session will have when all that is under way is over."""
    return {id: len(s.arenas) - len(s.recalled) + state.waiting.count(id) for id, s in state.sessions.items()}


def _recalls(state: State) -> int:
    return sum(len(s.recalled) for s in state.sessions.values())


def _recall(state: State, id: int) -> Transition:
    """Ask for the session's youngest arena: the older ones are likelier to hold what it keeps using."""
    session = state.sessions[id]
    arena = next(a for a in reversed(session.arenas) if a not in session.recalled)
    asked = replace(session, recalled=session.recalled | {arena})
    return _with(state, id, asked), (Recall(id, arena),)


def _grant(state: State, id: int) -> Transition:
    session = state.sessions[id]
    arena, following = state.next_arena, state.next_arena + 1
    if state.ahead is not None:
        arena, following = state.ahead.arena, state.next_arena
    after = _with(state, id, replace(session, arenas=(*session.arenas, arena)))
    return replace(after, next_arena=following, ahead=None), (Grant(id, arena),)


def _hand_out(state: State) -> Transition:
    """Give free arenas to those who wait, the neediest first; deny those that nothing comes back for."""
    actions: list[Action] = []
    while state.waiting and state.free_arenas > 0:
        id = _neediest(state)
        state, granted = _grant(_no_longer_waiting(state, id), id)
        actions += granted
    while len(state.waiting) > _recalls(state):
        id = _neediest(state, least=True)
        state = _no_longer_waiting(state, id)
        actions.append(Deny(id))
    return state, tuple(actions)


def _neediest(state: State, *, least: bool = False) -> int:
    wanted = _targets(state)
    lack = {id: wanted[id] - len(state.sessions[id].arenas) for id in state.waiting}
    # dict keeps the order of arrival, and max() and min() take the first of equals.
    return min(lack, key=lack.__getitem__) if least else max(lack, key=lack.__getitem__)


def _no_longer_waiting(state: State, id: int) -> State:
    at = state.waiting.index(id)
    return replace(state, waiting=state.waiting[:at] + state.waiting[at + 1 :])


def _arena_returned(state: State, event: ArenaReturned) -> Transition:
    session = state.sessions[event.session]
    kept = tuple(a for a in session.arenas if a != event.arena)
    after = replace(session, arenas=kept, recalled=session.recalled - {event.arena}, unwilling=False)
    return _hand_out(_with(state, event.session, after))


def _recall_failed(state: State, event: RecallFailed) -> Transition:
    session = state.sessions[event.session]
    after = replace(session, recalled=session.recalled - {event.arena}, unwilling=True)
    return _hand_out(_with(state, event.session, after))


def _arena_wait_over(state: State, event: ArenaWaitOver) -> Transition:
    return _no_longer_waiting(state, event.session), ()


# Arenas made ahead


def _arena_opened(state: State, event: ArenaOpened) -> Transition:
    if state.ahead is not None or not _goes_on(state, event.session):
        return state, ()
    arena = state.next_arena
    after = replace(state, next_arena=arena + 1, ahead=Ahead(arena, event.session))
    return after, (MakeAhead(arena),)


def _goes_on(state: State, id: int) -> bool:
    """Whether the session may soon ask for another arena, which can be had.

    It asks when it comes to the last one that it has, so all but two are full then; and memory is mostly
    allocated bit by bit, so what there is of it now says little of how much there will be.
    """
    if id not in state.sessions or state.short or state.free_arenas <= 0:
        return False
    session = state.sessions[id]
    return session.overflow > max(0, len(session.arenas) - 2) * state.limits.arena_slots


def _ahead_over(state: State, event: AheadOver) -> Transition:
    if state.ahead is None or state.ahead.arena != event.arena:
        return state, ()
    return replace(state, ahead=None), ()


def _reconsider_ahead(state: State) -> Transition:
    """Discard what is made ahead of a request that is not to be expected any more."""
    if state.ahead is None or _goes_on(state, state.ahead.session):
        return state, ()
    return replace(state, ahead=None), (Discard(state.ahead.arena),)


# While RAM is short


def _ram_wanted(state: State, event: RamWanted) -> Transition:
    # What is made ahead is the first to go.
    left = max(0, state.existing_arenas - event.arenas)
    short = max(state.short, state.whole.arenas - left)
    if event.again or not state.short:
        state = _forgive(state)
    return replace(state, short=short), ()


def _ram_spare(state: State, event: RamSpare) -> Transition:
    possible = state.held_arenas + event.arenas
    return replace(_forgive(state), short=min(state.short, max(0, state.whole.arenas - possible))), ()


def _forgive(state: State) -> State:
    for id, session in state.sessions.items():
        if session.unwilling:
            state = _with(state, id, replace(session, unwilling=False))
    return state


def _give_way(state: State) -> Transition:
    """Withhold as many arenas as are short and can be spared, and have those come back that are above it."""
    whole = state.whole
    limits = _least(whole, state.sessions, whole.arenas - state.short)
    state = replace(state, limits=limits, withheld=whole.arenas - limits.arenas)
    actions: list[Action] = []
    while sum((effective := _effective(state)).values()) > limits.arenas:
        wanted = _targets(state)
        above = {id: n - wanted[id] for id, n in effective.items() if n > wanted[id]}
        giver = max(
            (id for id in above if id in state.waiting or _would_give(state.sessions[id])),
            key=lambda id: (above[id], id),
            default=None,
        )
        if giver is None:
            # Those above refuse. Others have no duty to give what they should have, but if T3 has room
            # for it they can; with the last arena they would not be able to move anything.
            base = -(-TRANSIT // limits.arena_slots)
            givers = [
                id
                for id, s in state.sessions.items()
                if _would_give(s) and effective[id] > (base if s.moves else 0)
            ]
            giver = max(givers, key=lambda id: (effective[id], id), default=None)
        if giver is not None and giver not in state.waiting:
            state, asked = _recall(state, giver)
            actions += asked
        elif state.waiting:
            denied = giver if giver is not None else _neediest(state, least=True)
            state = _no_longer_waiting(state, denied)
            actions.append(Deny(denied))
        else:
            break
    state, handed = _hand_out(state)
    return state, (*actions, *handed)


def _would_give(session: Session) -> bool:
    return not session.unwilling and len(session.arenas) > len(session.recalled)


def _least(whole: Limits, sessions: Mapping[int, Session], arenas: int) -> Limits:
    """`whole` with the fewest arenas, but `arenas`, that leave a witness; as it is if none do."""
    low, high = arenas, whole.arenas
    while low < high:
        # Nearly always the first try succeeds.
        middle = low if high == whole.arenas and low == arenas else (low + high) // 2
        if feasible(replace(whole, arenas=middle), sessions):
            high = middle
        else:
            low = middle + 1
    return replace(whole, arenas=high)


def apply(state: State, event: Event) -> Transition:
    """The state after `event` and what is to be done. Raises Refused; nothing has changed then."""
    after, actions = _apply(state, event)
    if after.short or after.withheld:
        after, more = _give_way(after)
        actions += more
    if after.ahead is not None:
        after, more = _reconsider_ahead(after)
        actions += more
    return after, actions


def _apply(state: State, event: Event) -> Transition:
    match event:
        case SpillAsked():
            return _spill_asked(state, event)
        case ExtentsReturned():
            return _extents_returned(state, event)
        case Joined():
            return _joined(state, event)
        case Inherited():
            return _inherited(state, event)
        case Left():
            return _left(state, event)
        case VramSet():
            return _vram_set(state, event)
        case Allocated():
            return _allocated(state, event)
        case Freed():
            return _freed(state, event)
        case ExtentsChanged():
            return _extents_changed(state, event)
        case ExtentsWithdrawn():
            return _extents_withdrawn(state, event)
        case BudgetTurned():
            return _budget_turned(state, event)
        case ArenaAsked():
            return _arena_asked(state, event)
        case ArenaOpened():
            return _arena_opened(state, event)
        case AheadOver():
            return _ahead_over(state, event)
        case ArenaReturned():
            return _arena_returned(state, event)
        case RecallFailed():
            return _recall_failed(state, event)
        case ArenaWaitOver():
            return _arena_wait_over(state, event)
        case RamWanted():
            return _ram_wanted(state, event)
        case RamSpare():
            return _ram_spare(state, event)
    assert_never(event)
