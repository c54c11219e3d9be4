# SPDX-License-Identifier: GPL-2.0-or-later
"""shim/predict.c: what stays, what leaves, what is brought in ahead, whatever the program does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .pure_c import library

ffi, lib = library()
NONE = 0xFFFFFFFF
LOG = 1 << 12


class Cache:
    """VRAM or RAM of so many slots run by the predictor alone; everything else is in RAM or T3."""

    def __init__(
        self, slots: int, chunks: int, *, ahead: int = 0, log: int = LOG, place: int = lib.PLACE_VRAM
    ) -> None:
        self.slots = slots
        self.place = place
        self.history = ffi.new("struct history[]", chunks)
        self.log = ffi.new("struct past[]", log)
        self.p = ffi.new("struct predictor *")
        lib.predict_init(self.p, self.history, self.log, log)
        lib.predict_slots(self.p, slots)
        self.resident: set[int] = set()
        self.used: set[int] = set()  # of the resident ones
        self.held: set[int] = set()
        self.expected: dict[int, int] = {}  #: when it arrived, the place in the log where it was due
        self.ahead = ahead  #: chunks brought in between launches, at most
        self.arrivals = 0
        self.looks = 0
        self.grades: dict[int, int] = {}
        self.may_leave = ffi.callback("enum predict_leave(void *, uint32_t)", self._may_leave)
        self.wanted = ffi.callback("bool(void *, uint32_t)", self._wanted)

    def _may_leave(self, _: object, chunk: int) -> int:
        if chunk not in self.resident or chunk in self.held:
            return int(lib.LEAVE_NOT)
        return int(self.grades.get(chunk, lib.LEAVE_CLEAN))

    def _wanted(self, _: object, chunk: int) -> bool:
        self.looks += 1
        return chunk not in self.resident

    def victim(self, haste: int) -> int:
        return int(lib.predict_victim(self.p, self.place, haste, self.may_leave, ffi.NULL))

    def next(self, reach: int = lib.REACH_NEAR, place: int | None = None) -> int:
        place = self.place if place is None else place
        return int(lib.predict_next(self.p, place, reach, self.wanted, ffi.NULL))

    def leave(self, chunk: int) -> None:
        self.resident.remove(chunk)
        self.used.discard(chunk)
        if self.place == lib.PLACE_VRAM:
            lib.predict_left(self.p, chunk, False)
            lib.predict_moved(self.p, chunk, lib.PLACE_RAM, False)
        else:
            lib.predict_moved(self.p, chunk, lib.PLACE_AWAY, False)

    def arrive(self, chunk: int, ahead: bool) -> None:
        assert len(self.resident) < self.slots
        self.resident.add(chunk)
        self.expected[chunk] = self.history[chunk].due
        lib.predict_moved(self.p, chunk, self.place, ahead)
        self.arrivals += 1

    def use(self, *chunks: int, tag: int = 0) -> None:
        lib.predict_begin(self.p, tag)
        for chunk in chunks:
            lib.predict_use(self.p, chunk)
        lib.predict_end(self.p)
        self.held = set(chunks)
        for chunk in chunks:
            if chunk not in self.resident:
                if len(self.resident) == self.slots:
                    # Whoever waits is served as long as anything may leave.
                    victim = self.victim(lib.HASTE_HURRY)
                    assert victim in self.resident - self.held
                    self.leave(victim)
                self.arrive(chunk, False)
        self.used |= self.held
        self.held = set()
        for _ in range(self.ahead):
            if not self.look_ahead():
                break

    def look_ahead(self) -> bool:
        chunk = self.next()
        if chunk == NONE:
            return False
        assert chunk not in self.resident
        if len(self.resident) == self.slots:
            victim = self.victim(lib.HASTE_AHEAD)
            if victim == NONE:
                return False
            # Brought in and not used since: it must not go for another one before its time is over.
            assert victim in self.used or self.p.cursor > self.expected[victim]
            self.leave(victim)
        self.arrive(chunk, True)
        return True

    def passes(self, number: int, launches: Sequence[Iterable[int]]) -> int:
        """Arrivals a pass, over so many passes."""
        before = self.arrivals
        for _ in range(number):
            for tag, chunks in enumerate(launches):
                self.use(*chunks, tag=tag)
        return (self.arrivals - before) // number


def loop(chunks: int) -> list[list[int]]:
    return [[chunk] for chunk in range(chunks)]


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize(("slots", "chunks"), [(15, 20), (60, 100), (96, 100), (200, 600), (590, 600)])
def test_a_loop_keeps_a_part_and_streams_the_rest(slots: int, chunks: int, ahead: int) -> None:
    """What does not fit comes in once a pass, and little more; LRU would move all of it."""
    cache = Cache(slots, chunks, ahead=ahead)
    cache.passes(4, loop(chunks))
    assert cache.passes(10, loop(chunks)) <= 1.05 * (chunks - slots) + 6


@pytest.mark.parametrize(("places", "chunks"), [(100, 200), (280, 400), (100, 400), (700, 1000)])
def test_what_ram_gives_up_comes_to_lie_all_over_the_pass(places: int, chunks: int) -> None:
    """RAM has the first of a loop and T3 the others, so that T3 is read in one part of a pass, at first."""
    cache = Cache(chunks, chunks, place=lib.PLACE_RAM)
    cache.passes(2, loop(chunks))
    cache.slots = places
    for chunk in range(places, chunks):
        cache.leave(chunk)
    for _ in range(6):
        read = []
        for chunk in range(chunks):
            if chunk not in cache.resident:
                read.append(chunk)
            cache.use(chunk, tag=chunk)
        # No more than if the last that was used left, which would leave all as it lies.
        assert len(read) <= chunks - places + 2
    longest = max(after - before for before, after in pairwise([*read, read[0] + chunks]))
    assert longest < places / 4


def test_nothing_moves_once_all_fits() -> None:
    cache = Cache(50, 50, ahead=4)
    cache.passes(2, loop(50))
    assert cache.passes(5, loop(50)) == 0


def test_what_every_step_uses_stays() -> None:
    cache = Cache(20, 100, ahead=2)
    launches = [[0, 1, chunk] for chunk in range(2, 100)]
    cache.passes(3, launches)
    arrivals = cache.passes(5, launches)
    assert {0, 1} <= cache.resident
    assert arrivals <= 1.05 * (100 - 20) + 6


def test_what_streams_is_spread_over_the_pass() -> None:
    """In every tenth of a pass about a tenth of it comes in."""
    cache = Cache(300, 600, ahead=4)
    cache.passes(6, loop(600))
    parts = []
    for part in range(10):
        before = cache.arrivals
        for chunk in range(60 * part, 60 * part + 60):
            cache.use(chunk, tag=chunk)
        parts.append(cache.arrivals - before)
    assert max(parts) <= 1.5 * sum(parts) / 10
    assert min(parts) >= 0.5 * sum(parts) / 10


def test_most_of_what_streams_is_there_before_it_is_asked_for() -> None:
    cache = Cache(300, 600, ahead=4)
    cache.passes(6, loop(600))
    waited = 0
    for chunk in range(600):
        waited += chunk not in cache.resident
        cache.use(chunk, tag=chunk)
    assert waited < 10


def test_another_order_is_learned_within_two_passes() -> None:
    cache = Cache(60, 100, ahead=2)
    cache.passes(5, loop(100))
    backwards = loop(100)[::-1]
    cache.passes(2, backwards)
    assert cache.passes(4, backwards) <= 1.05 * 40 + 6


def test_a_phase_that_ended_gives_its_place() -> None:
    """Chunks of a part of the program that is over leave before those of the part that runs."""
    cache = Cache(60, 200, ahead=2)
    cache.passes(4, loop(100))
    other = [[chunk] for chunk in range(100, 160)]
    cache.passes(3, other)
    assert cache.passes(3, other) == 0


def test_forward_and_backward_need_no_more_than_they_must() -> None:
    """Used last in the way there is used first on the way back: least bytes are 2 * (100 - 60)."""
    cache = Cache(60, 100, ahead=2)
    there_and_back = [[c] for c in range(100)] + [[c] for c in reversed(range(100))]
    cache.passes(4, there_and_back)
    assert cache.passes(6, there_and_back) <= 1.1 * 80 + 8


FORWARD, OPTIMIZER = 1, 2


def test_the_second_forward_pass_follows_the_first_and_not_the_optimizer() -> None:
    """Which used all of it later, in another order."""
    cache = Cache(40, 100)
    for chunk in range(100):
        cache.use(chunk, tag=FORWARD)
    for chunk in range(100):
        cache.use(37 * chunk % 100, tag=OPTIMIZER)
    for chunk in range(6):
        cache.use(chunk, tag=FORWARD)
    assert cache.p.cursor == 7  # places count from 1


def test_what_is_followed_is_not_much_longer_ago_than_it_must() -> None:
    """Or all that happened since counts as one pass."""
    cache = Cache(40, 100)
    for tag in (1, 2, 2, 2, 2):
        for chunk in range(100):
            cache.use(37 * chunk % 100 if tag == 2 else chunk, tag=tag)
    for chunk in range(50):
        cache.use(chunk, tag=1)
    assert 0 < cache.p.head - cache.p.cursor <= 300
    assert cache.p.cursor


def test_a_clean_one_leaves_before_a_dirty_one() -> None:
    cache = Cache(60, 100)
    cache.passes(4, loop(100))
    for chunk in range(0, 100, 2):
        lib.predict_left(cache.p, chunk, True)
        cache.grades[chunk] = lib.LEAVE_DIRTY
    cache.passes(4, loop(100))
    came = {True: 0, False: 0}
    for chunk in range(100):
        came[chunk % 2 == 0] += chunk not in cache.resident
        cache.use(chunk, tag=chunk)
    assert came[True] * 2 < came[False]


def test_a_busy_one_is_waited_for_if_there_is_time_and_not_looked_ahead_for() -> None:
    cache = Cache(60, 100)
    cache.passes(4, loop(100))
    cache.grades = dict.fromkeys(range(100), lib.LEAVE_BUSY)
    assert cache.victim(lib.HASTE_AHEAD) == NONE
    assert cache.victim(lib.HASTE_PATIENT) in cache.resident
    cache.grades[next(iter(cache.resident))] = lib.LEAVE_CLEAN


def test_an_idle_bus_is_used_for_what_is_farther_ahead() -> None:
    """And takes the place of what was to stay, which a busy one does not."""
    cache = Cache(122, 200)
    cache.passes(4, loop(200))  # the next is 0
    while cache.look_ahead():
        pass
    absent = min(set(range(200)) - cache.resident)
    assert 200 // 32 < absent < 200 // 16
    assert cache.next() == NONE
    assert cache.next(lib.REACH_IDLE) == absent
    while (victim := cache.victim(lib.HASTE_AHEAD)) != NONE:
        cache.grades[victim] = lib.LEAVE_NOT
    before = cache.p.unplanned
    victim = cache.victim(lib.HASTE_IDLE)
    assert victim in cache.resident
    assert victim >= 200 - 200 // 8  # one of those due last
    cache.leave(victim)
    assert cache.p.unplanned == before + 1


def test_what_a_change_of_programs_lacked_is_not_kept_for_good() -> None:
    """Places that were missing for a while are for chunks that stay again some passes later."""
    cache = Cache(60, 100)
    cache.passes(4, loop(100))
    settled = cache.passes(4, loop(100))
    cache.p.shortage = 15  # all a plan may have: a quarter of the slots
    assert cache.passes(1, loop(100)) >= settled
    most = cache.passes(1, loop(100))
    cache.passes(40, loop(100))
    assert cache.p.shortage == 0
    assert cache.passes(4, loop(100)) == settled < most


def test_pinned_by_address_leaves_last_of_all() -> None:
    cache = Cache(4, 10)
    for chunk in range(4):
        cache.use(chunk)
    cache.grades = {0: lib.LEAVE_LAST, 1: lib.LEAVE_LAST, 2: lib.LEAVE_LAST}
    assert cache.victim(lib.HASTE_HURRY) == 3
    cache.grades[3] = lib.LEAVE_LAST
    assert cache.victim(lib.HASTE_HURRY) in range(4)
    assert cache.victim(lib.HASTE_AHEAD) == NONE
    cache.grades = dict.fromkeys(range(4), lib.LEAVE_GRACE)
    assert cache.victim(lib.HASTE_HURRY) in range(4)
    assert cache.victim(lib.HASTE_AHEAD) == NONE
    cache.grades[2] = lib.LEAVE_LAST
    assert cache.victim(lib.HASTE_HURRY) == 2


def test_what_came_ahead_leaves_before_what_must_only_leave_last() -> None:
    """It costs a copy, and the other perhaps a fault."""
    cache = Cache(4, 10)
    for chunk in range(3):
        cache.use(chunk)
    cache.arrive(5, True)
    assert cache.victim(lib.HASTE_HURRY) in range(3)
    cache.grades = {0: lib.LEAVE_GRACE, 1: lib.LEAVE_LAST, 2: lib.LEAVE_LAST}
    assert cache.victim(lib.HASTE_HURRY) == 5


def test_what_is_not_used_when_it_is_due_is_not_brought_in_for_ever() -> None:
    """An expert that was once routed to comes ahead of its use a few times at most."""
    cache = Cache(60, 200, ahead=4)
    cache.passes(3, loop(100))
    cache.use(150, tag=500)
    cache.passes(6, loop(100))
    before = int(cache.history[150].doubt)
    cache.passes(3, loop(100))
    assert 150 not in cache.resident or before == cache.history[150].doubt == 0


def test_what_was_not_used_when_it_was_due_is_not_read_from_t3_ahead() -> None:
    """A read in vain keeps others waiting for longer than a copy."""
    cache = Cache(100, 100)

    def use(chunks: Iterable[int]) -> None:
        for chunk in chunks:
            cache.use(chunk, tag=chunk)

    for _ in range(3):
        use(range(100))
    use(chunk for chunk in range(100) if chunk != 50)
    use(range(100))  # and once more it is due in a pass
    use(range(49))
    cache.leave(50)
    assert (cache.next(place=lib.PLACE_RAM), cache.next()) == (NONE, 50)
    use(range(49, 100))
    use(range(49))
    cache.leave(50)
    assert (cache.next(place=lib.PLACE_RAM), cache.next()) == (50, 50)


def leavers(cache: Cache) -> set[tuple[int, int]]:
    """(chunk, its use) of those that are waiting to leave."""
    p = cache.p
    queue = (p.leaving[(p.leaving_first + n) % 4096] for n in range(p.leaving_count))
    return {(entry.chunk, entry.use) for entry in queue}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4, 20),
    st.integers(0, 4),
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 39), min_size=1, max_size=4, unique=True),
            st.tuples(st.just("loop"), st.integers(2, 40), st.integers(1, 4)),
            st.tuples(st.just("free"), st.integers(0, 39)),
        ),
        max_size=30,
    ),
    st.sampled_from([64, 256, LOG]),
)
# One that was to leave, and whose next use the program has gone past without using it.
@example(slots=4, ahead=0, events=[("loop", 16, 1), ("loop", 3, 1), [0]], log=64)
def test_whatever_happens_the_books_are_right(
    slots: int, ahead: int, events: list[list[int] | tuple[str, int] | tuple[str, int, int]], log: int
) -> None:
    """Victims are resident and not held, none is thrown out unread, looking ahead is bounded."""
    cache = Cache(slots, 40, ahead=ahead, log=log)
    for event in events:
        if isinstance(event, list):
            cache.use(*event, tag=len(event))
        elif event[0] == "free":
            chunk = event[1]
            cache.resident.discard(chunk)
            cache.used.discard(chunk)
            lib.predict_forget(cache.p, chunk)
        else:
            for _ in range(event[-1]):
                for chunk in range(event[1]):
                    cache.use(chunk, tag=chunk)
        chunks = range(40)
        assert cache.p.unread == sum(cache.history[c].unread for c in chunks)
        assert cache.p.known == sum(cache.history[c].due != 0 for c in chunks)
        leaving = [c for c in chunks if cache.history[c].leaving]
        assert cache.p.streaming == cache.p.unread + len(leaving)
        assert {(c, cache.history[c].last) for c in leaving} <= leavers(cache)
        absent = [c for c in chunks if cache.history[c].due and cache.history[c].place != lib.PLACE_VRAM]
        assert cache.p.absent == len(absent)
        assert {c for c in chunks if cache.history[c].place == lib.PLACE_VRAM} == cache.resident
        assert not any(cache.history[c].unread for c in chunks if c not in cache.resident)
        for c in chunks:
            due = cache.history[c].due
            assert due == 0 or cache.p.cursor <= due < cache.p.head
            assert due == 0 or cache.log[due & (log - 1)].chunk == c


def test_looking_ahead_looks_at_each_use_about_once() -> None:
    cache = Cache(300, 600, ahead=4)
    cache.passes(4, loop(600))
    cache.looks = 0
    cache.passes(2, loop(600))
    assert cache.looks <= 4 * 2 * 600
