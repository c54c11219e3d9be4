# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy under arbitrary histories: nothing is overcommitted, and nobody is stuck."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tierd import policy
from tierd.capacity import TRANSIT, Limits, Session, extents_needed, feasible, lone_capacity, room, targets
from tierd.policy import (
    AheadOver,
    Allocated,
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
    Freed,
    Grant,
    Joined,
    Left,
    MakeAhead,
    RamSpare,
    RamWanted,
    Recall,
    RecallFailed,
    Refused,
    SpillAsked,
    State,
    VramSet,
)

limits_ = st.builds(
    Limits, arenas=st.integers(0, 6), arena_slots=st.integers(1, 5), extents=st.integers(0, 20)
)
sessions_ = st.dictionaries(
    st.integers(1, 4),
    st.builds(Session, committed=st.integers(0, 15), vram=st.integers(0, 6), extents=st.integers(0, 6)),
    max_size=4,
)


def brute_force(limits: Limits, sessions: dict[int, Session]) -> int | None:
    """extents_needed() by trying every way to share the arenas out."""
    base = -(-TRANSIT // limits.arena_slots)
    best = None
    ranges = [range(base if s.overflow or s.extents else 0, limits.arenas + 1) for s in sessions.values()]
    for shares in itertools.product(*ranges):
        if sum(shares) > limits.arenas:
            continue
        needed = sum(
            max(s.extents, s.need - share * limits.arena_slots)
            for s, share in zip(sessions.values(), shares, strict=True)
        )
        best = needed if best is None else min(best, needed)
    return best


@given(limits_, sessions_)
def test_extents_needed_is_the_best_of_all_ways(limits: Limits, sessions: dict[int, Session]) -> None:
    assert extents_needed(limits, sessions.values()) == brute_force(limits, sessions)


@given(limits_, sessions_)
def test_targets_are_a_witness_when_there_is_one(limits: Limits, sessions: dict[int, Session]) -> None:
    if not feasible(limits, sessions):
        return
    shares = targets(limits, sessions)
    assert shares.keys() == sessions.keys()
    assert sum(shares.values()) <= limits.arenas
    for id, session in sessions.items():
        assert not session.need or shares[id] * limits.arena_slots >= TRANSIT
    needed = sum(max(s.extents, s.need - shares[id] * limits.arena_slots) for id, s in sessions.items())
    assert needed <= limits.extents


@given(st.integers(1, 12), st.integers(1, 4), st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_targets_are_max_min_fair_when_t3_is_large(arenas: int, slots: int, overflows: list[int]) -> None:
    limits = Limits(arenas, slots, 1000)
    sessions = {id: Session(committed=n) for id, n in enumerate(overflows)}
    if not feasible(limits, sessions):
        return
    shares = targets(limits, sessions)
    for one, other in itertools.permutations(sessions, 2):
        wants_more = shares[one] * slots < sessions[one].need
        base = -(-TRANSIT // slots)
        assert not wants_more or shares[other] <= max(shares[one] + 1, base)
    if sum(shares.values()) < arenas:
        assert all(shares[id] * slots >= s.need for id, s in sessions.items())


@given(limits_, sessions_)
def test_room_is_exactly_what_is_feasible(limits: Limits, sessions: dict[int, Session]) -> None:
    if not sessions or not feasible(limits, sessions):
        return
    id = min(sessions)
    most = room(limits, sessions, id)

    def with_overflow(overflow: int) -> dict[int, Session]:
        now = sessions[id]
        return sessions | {id: Session(now.vram + overflow, now.vram, extents=now.extents)}

    assert most >= sessions[id].overflow
    assert feasible(limits, with_overflow(most)) or most == 0
    assert not feasible(limits, with_overflow(most + 1))


@given(limits_)
def test_a_lone_session_has_the_room_that_its_hello_says(limits: Limits) -> None:
    assert room(limits, {1: Session()}, 1) == sum(lone_capacity(limits))


class Policy(RuleBasedStateMachine):
    """Sessions that allocate, move chunks below VRAM, ask for arenas and give them back.

    `below` counts each session's chunks in arena slots. A session keeps to the protocol: it has no
    more chunks below than are allocated, and empties an arena before it gives it back.
    """

    @initialize(limits=limits_)
    def begin(self, limits: Limits) -> None:
        self.state = State(limits)
        self.below: dict[int, int] = {}
        self.pending: list[Recall] = []  # recalls that were not answered yet
        self.waiting: list[int] = []  # requests for an arena that were not answered yet
        self.ahead: set[int] = set()  # arenas that are made ahead
        self.ids = itertools.count(1)

    # What the daemon does

    def happen(self, event: Event) -> bool:
        """Let it happen; False if it is refused, which must leave the state as it was."""
        before = self.state
        try:
            self.state, actions = policy.apply(self.state, event)
        except Refused:
            assert self.state is before
            return False
        if isinstance(event, ArenaAsked):
            self.waiting.append(event.session)
        for action in actions:
            match action:
                case Recall():
                    assert action.arena in self.state.sessions[action.session].arenas
                    self.pending.append(action)
                case Grant(id, arena):
                    assert arena in self.state.sessions[id].arenas
                    self.waiting.remove(id)
                    # Whoever is granted one gets that which is there.
                    assert not self.ahead or arena in self.ahead
                    self.ahead.discard(arena)
                case MakeAhead(arena):
                    self.ahead.add(arena)
                case Discard(arena):
                    self.ahead.remove(arena)
                case Deny(id):
                    self.waiting.remove(id)
        return True

    # What sessions do

    def slots(self, id: int) -> int:
        return len(self.state.sessions[id].arenas) * self.state.limits.arena_slots

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.state.sessions)))

    @precondition(lambda self: len(self.state.sessions) < 4)
    @rule()
    def join(self) -> None:
        id = next(self.ids)
        assert self.happen(Joined(id))
        self.below[id] = 0

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        id = self.pick(data)
        self.waiting = [w for w in self.waiting if w != id]
        self.pending = [r for r in self.pending if r.session != id]
        assert self.happen(Left(id))
        del self.below[id]

    # Spill paths

    @rule(count=st.integers(1, 6))
    def add_path(self, count: int) -> None:
        assert self.happen(ExtentsChanged(self.state.limits.extents + count))

    @rule(data=st.data())
    def drain_path(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.state.limits.extents))
        limits = replace(self.state.limits, extents=self.state.limits.extents - count)
        # What it holds has a place elsewhere, or it stays.
        assert self.happen(ExtentsWithdrawn(count)) is feasible(limits, self.state.sessions)

    # The system's memory

    @rule(arenas=st.integers(0, 4), again=st.booleans())
    def ram_wanted(self, arenas: int, again: bool) -> None:
        before = self.state
        assert self.happen(RamWanted(arenas, again))
        after = self.state
        assert after.limits.arenas <= before.limits.arenas
        assert after.whole == before.whole
        # Never below what was promised, and never more than was asked for.
        left = max(0, before.existing_arenas - arenas)
        assert after.limits.arenas >= min(left, before.limits.arenas)
        least = replace(after.limits, arenas=after.limits.arenas - 1)
        assert after.limits.arenas <= max(left, 0) or not feasible(least, after.sessions)
        # Said again it changes nothing: what is on its way back is not asked for twice. What was made ahead
        # is no arena any more.
        gone = before.existing_arenas - before.held_arenas
        settled = policy.apply(after, RamWanted(max(0, arenas - gone)))
        assert settled == (after, ())

    @rule(arenas=st.integers(0, 4))
    def ram_spare(self, arenas: int) -> None:
        before = self.state
        assert self.happen(RamSpare(arenas))
        assert self.state.limits.arenas >= before.limits.arenas
        assert self.state.whole == before.whole
        if before.held_arenas + arenas >= before.whole.arenas:
            assert not self.state.short
            assert not self.state.withheld

    @rule(spent=st.booleans())
    def budget(self, spent: bool) -> None:
        assert self.happen(BudgetTurned(spent))

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data(), slots=st.integers(0, 8))
    def vram(self, data: st.DataObject, slots: int) -> None:
        id = self.pick(data)
        assert self.happen(VramSet(id, slots)) or slots < self.state.sessions[id].vram

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data(), chunks=st.integers(1, 12))
    def alloc(self, data: st.DataObject, chunks: int) -> None:
        id = self.pick(data)
        session = self.state.sessions[id]
        left = room(self.state.limits, self.state.sessions, id)
        fits = session.committed + chunks <= session.vram + left
        if fits and self.state.budget_spent:
            grown = replace(session, committed=session.committed + chunks)
            today = replace(self.state.limits, extents=self.state.extents_used)
            fits = grown.overflow <= session.overflow or feasible(today, {**self.state.sessions, id: grown})
        assert self.happen(Allocated(id, chunks)) is fits

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        id = self.pick(data)
        session = self.state.sessions[id]
        kept = data.draw(st.integers(0, session.committed))
        # Freed chunks leave their slots and extents.
        if session.extents > kept:
            assert self.happen(ExtentsReturned(id, session.extents - kept))
        self.below[id] = min(self.below[id], kept - self.state.sessions[id].extents)
        assert self.happen(Freed(id, session.committed - kept))

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data())
    def demote(self, data: st.DataObject) -> None:
        id = self.pick(data)
        session = self.state.sessions[id]
        if self.below[id] + session.extents < session.committed and self.below[id] < self.slots(id):
            self.below[id] += 1

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        id = self.pick(data)
        self.below[id] = max(0, self.below[id] - 1)

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data())
    def spill(self, data: st.DataObject) -> None:
        id = self.pick(data)
        if self.below[id] and self.happen(SpillAsked(id)):
            self.below[id] -= 1

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        id = self.pick(data)
        if self.state.sessions[id].extents and self.below[id] < self.slots(id):
            assert self.happen(ExtentsReturned(id, 1))
            self.below[id] += 1

    @precondition(lambda self: self.state.sessions)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        id = self.pick(data)
        session = self.state.sessions[id]
        target = targets(self.state.limits, self.state.sessions)[id]
        short = len(session.arenas) - len(session.recalled) + self.waiting.count(id) < target
        idle = self.state.free_arenas > 0
        coming = self.state.free_arenas + len(self.pending) > len(self.waiting)
        queue, pending = [*self.waiting, id], list(self.pending)
        # No starvation: whoever is below its target gets an arena or a place in the queue for one.
        assert self.happen(ArenaAsked(id)) or not (short or idle or coming)
        # Nothing is asked back and nobody sent away for an arena that comes anyway.
        assert idle or not coming or (self.waiting, self.pending) == (queue, pending)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), gives_up=st.booleans())
    def ask_for_what_comes_back(self, data: st.DataObject, gives_up: bool) -> None:
        """To nobody else: RAM is not short any more, and perhaps who wanted it gives up."""
        assert self.happen(RamSpare(self.state.whole.arenas))
        if gives_up and self.waiting:
            self.give_up(data)
        self.ask(data)

    @precondition(lambda self: any(s.arenas for s in self.state.sessions.values()))
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        having = sorted(id for id, session in self.state.sessions.items() if session.arenas)
        assert self.happen(ArenaOpened(data.draw(st.sampled_from(having))))

    @rule(arena=st.integers(1, 20))
    def nobody_wants(self, arena: int) -> None:
        granted = [arena for session in self.state.sessions.values() for arena in session.arenas]
        assert self.happen(AheadOver(arena))
        self.ahead.discard(arena)
        assert granted == [arena for session in self.state.sessions.values() for arena in session.arenas]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(id)
        assert self.happen(ArenaWaitOver(id))

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), obeys=st.booleans())
    def answer_recall(self, data: st.DataObject, obeys: bool) -> None:
        self.answer(self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1))), obeys=obeys)

    def answer(self, recall: Recall, *, obeys: bool = True) -> None:
        event = ArenaReturned if obeys and self.empty(recall.session) else RecallFailed
        assert self.happen(event(recall.session, recall.arena))

    def empty(self, id: int) -> bool:
        """Make room for one arena less, VRAM first, then T3; whether that worked."""
        kept = self.slots(id) - self.state.limits.arena_slots
        session = self.state.sessions[id]
        in_vram = session.committed - self.below[id] - session.extents
        self.below[id] -= min(max(0, session.vram - in_vram), max(0, self.below[id] - kept))
        while self.below[id] > kept:
            if not self.happen(SpillAsked(id)):
                if self.state.budget_spent and self.state.free_arenas:
                    return False  # nobody needs the arena any more
                # Since the recall the session has become entitled to the arena, so it may keep it.
                session = self.state.sessions[id]
                assert len(session.arenas) <= targets(self.state.limits, self.state.sessions)[id]
                return False
            self.below[id] -= 1
        return True

    @precondition(lambda self: self.state.sessions)
    @rule()
    def write_everything(self) -> None:
        """Every session writes all it has allocated: each chunk must find a place, soon."""
        while self.pending:
            self.answer(self.pending.pop())
        for id in self.state.sessions:
            for step in itertools.count():
                session = self.state.sessions[id]
                if self.below[id] + session.extents >= session.overflow:
                    break
                assert step < 200, "chunks chase each other"
                if self.below[id] < self.slots(id) - TRANSIT:
                    self.below[id] += 1
                    continue
                if self.happen(ArenaAsked(id)):
                    while self.pending:
                        self.answer(self.pending.pop())
                    continue
                # Through a transit slot to T3.
                assert self.slots(id) >= TRANSIT
                assert self.happen(SpillAsked(id))

    @invariant()
    def nothing_is_overcommitted(self) -> None:
        state = self.state
        assert state.existing_arenas <= state.whole.arenas
        assert state.extents_used <= state.limits.extents
        assert feasible(state.limits, state.sessions)

    @invariant()
    def bookkeeping_agrees(self) -> None:
        state = self.state
        assert sorted(state.waiting) == sorted(self.waiting)
        assert not state.waiting or state.free_arenas <= 0
        recalls = [(id, arena) for id, s in state.sessions.items() for arena in s.recalled]
        assert sorted(recalls) == sorted((r.session, r.arena) for r in self.pending)
        excess = -min(0, state.free_arenas)
        assert len(state.waiting) <= max(0, len(recalls) - excess)
        assert 0 <= state.withheld <= state.short
        # While RAM is short, all who have more than they should have in the end are asked for it.
        shares = targets(state.limits, state.sessions)
        for id, session in state.sessions.items():
            kept = len(session.arenas) - len(session.recalled)
            assert len(recalls) >= excess or session.unwilling or kept <= shares[id]
        arenas = [arena for s in state.sessions.values() for arena in s.arenas]
        assert len(arenas) == len(set(arenas))
        assert self.ahead == ({state.ahead.arena} if state.ahead else set())
        assert self.ahead.isdisjoint(arenas)
        # It takes nothing from anybody.
        assert not self.ahead or (state.free_arenas > 0 and not state.short)


TestPolicy = Policy.TestCase
TestPolicy.settings = settings(max_examples=300, stateful_step_count=60, deadline=None, derandomize=True)
