# SPDX-License-Identifier: GPL-2.0-or-later
"""Watermarks and the governor under arbitrary courses of available memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tierd.memory import Memory
from tierd.model import Pressure, PressureLevel
from tierd.watermark import Governor, Spare, Wanted, Watcher, Watermarks, default_reserve

MIB = 1 << 20
GIB = 1 << 30
CALM, LOW, CRITICAL = PressureLevel

sizes = st.integers(0, 64 * GIB)
courses = st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=50)


@given(st.integers(0, 8 * GIB), st.lists(sizes, min_size=1, max_size=50))
def test_levels_change_at_different_marks_down_and_up(reserve: int, course: list[int]) -> None:
    marks = Watermarks.around(reserve)
    assert marks.min <= marks.low <= marks.high
    level = CALM
    for available in course:
        before, level = level, marks.level(level, available)
        if available >= marks.high:
            assert level is CALM
        elif available < marks.min:
            assert level is CRITICAL
        elif level > before:
            assert available < marks.low
        elif level < before:
            assert level is LOW
            assert available >= marks.low


@given(st.integers(MIB, 8 * GIB), st.lists(st.floats(0, 1, exclude_max=True), max_size=30))
def test_between_the_low_and_the_high_watermark_nothing_changes(reserve: int, course: list[float]) -> None:
    marks = Watermarks.around(reserve)
    for level in (CALM, LOW):
        for part in course:
            assert marks.level(level, marks.low + int(part * (marks.high - marks.low))) is level


@given(st.one_of(st.none(), st.integers(0, 8 * GIB)), courses, sizes)
def test_what_is_wanted_is_what_is_missing(
    reserve: int | None, course: list[tuple[int, bool]], group: int
) -> None:
    watcher = Watcher(reserve)
    for available, stalls in course:
        before = watcher
        domains = [Memory("machine", 64 * GIB, available), Memory("/group", 2 * GIB, min(group, available))]
        watcher = before.look(domains, stalls=stalls)
        now = watcher.pressure
        assert (now.wanted > 0) <= (now.level is not CALM)
        assert now.level is CALM or now.available + now.wanted >= now.high
        assert now.events == before.pressure.events + (now.level is not before.pressure.level)
        assert reserve != 0 or now.level is CALM
        # Whoever takes memory at 4 GiB/s does not get far below a mark unseen.
        marks = [Watermarks.around(default_reserve(d.total) if reserve is None else reserve) for d in domains]
        margin = min(d.available - m.low for d, m in zip(domains, marks, strict=True))
        assert 0.02 <= watcher.interval <= 1
        assert stalls or watcher.interval * 4 * GIB <= max(margin, 0.02 * 4 * GIB) + 1


def test_stalls_count_only_where_memory_is_not_plenty() -> None:
    plenty, little = [Memory("machine", 16 * GIB, n * GIB) for n in (8, 1)]
    assert Watcher(GIB // 2).look([plenty], stalls=True).pressure.level is CALM
    assert Watcher(GIB // 2).look([little], stalls=False).pressure.level is CALM
    pressed = Watcher(GIB // 2 + MIB).look([little], stalls=True)
    assert (pressed.pressure.level, pressed.pressure.wanted) == (LOW, GIB // 2 + 3 * MIB)
    # Unless it lasts, it is over at the next look.
    assert pressed.look([little]).pressure.level is CALM


def test_the_shortest_speaks_for_all() -> None:
    machine, group = Memory("machine", 64 * GIB, 32 * GIB), Memory("/group", 2000 * MIB, 90 * MIB)
    now = Watcher(None).look([machine, group]).pressure
    assert (now.level, now.wanted, now.available) == (LOW, 60 * MIB, 90 * MIB)
    assert Watcher(None).look([machine]).pressure.level is CALM


def pressure(level: PressureLevel, wanted: int = 0, spare: int = 0) -> Pressure:
    return Pressure(level, wanted, GIB - wanted + spare, GIB, 0)


steps = st.tuples(
    st.floats(0.01, 5), st.sampled_from(PressureLevel), st.integers(0, GIB), st.integers(0, 8 * GIB)
)


@given(st.lists(steps, max_size=60))
def test_the_governor_asks_at_once_and_allows_with_patience(
    steps: list[tuple[float, PressureLevel, int, int]],
) -> None:
    governor, now, last_pressed = Governor(), 0.0, float("-inf")
    for seconds, level, size, held in steps:
        now += seconds
        done = governor.consider(now, pressure(level, size if level else 0, size), held, limited=True)
        if level is CALM:
            assert done is None or now - last_pressed >= 2
            assert done is None or done == Spare(size)
        else:
            last_pressed = now
            assert isinstance(done, Wanted)
            assert done.bytes <= size
            assert level is LOW or done.bytes == size


def test_what_has_just_been_returned_is_not_asked_for_again() -> None:
    governor = Governor()
    low = pressure(LOW, wanted=300 * MIB)
    assert governor.consider(0, low, GIB, limited=False) == Wanted(300 * MIB, True)
    # Its pages are free a little later.
    assert governor.consider(0.1, low, GIB - 200 * MIB, limited=True) == Wanted(100 * MIB, False)
    assert governor.consider(0.2, low, GIB - 400 * MIB, limited=True) == Wanted(0, False)
    critical = pressure(CRITICAL, wanted=300 * MIB)
    assert governor.consider(0.3, critical, GIB - 400 * MIB, limited=True) == Wanted(300 * MIB, False)
    assert governor.consider(1.3, low, GIB - 400 * MIB, limited=True) == Wanted(300 * MIB, False)
    assert governor.consider(11, low, GIB - 400 * MIB, limited=True) == Wanted(300 * MIB, True)


def test_patience_grows_while_pressure_comes_back() -> None:
    governor, now = Governor(), 0.0
    patience = []
    for _ in range(8):
        governor.consider(now, pressure(LOW, wanted=MIB), GIB, limited=True)
        began = now = now + 0.5
        while governor.consider(now, pressure(CALM, spare=MIB), GIB, limited=True) is None:
            now += 0.5
        patience.append(now - began)
        now += 1
    assert patience == [2, 4, 8, 16, 32, 64, 64, 64]
    # After a long time without, it is as at first.
    now += 1000
    governor.consider(now, pressure(LOW, wanted=MIB), GIB, limited=True)
    assert governor.consider(now + 1, pressure(CALM), GIB, limited=True) is None
    assert governor.consider(now + 3, pressure(CALM), GIB, limited=True) == Spare(0)


def test_without_a_limit_there_is_nothing_to_allow() -> None:
    governor = Governor()
    for now in range(10):
        assert governor.consider(now, pressure(CALM, spare=GIB), GIB, limited=False) is None
