# SPDX-License-Identifier: GPL-2.0-or-later
"""shim/alloc_map.c against a model that keeps plain lists."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from .pure_c import library

ffi, lib = library()
CHUNK = 16
LIMIT = 64


def ask(handle: object, offset: int) -> tuple[int, int, bool]:
    """What a launch that names this offset means: begin, end, whether that is certain."""
    begin, end, known = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("bool *")
    lib.alloc_object(handle, offset, begin, end, known)
    return begin[0], end[0], known[0]


@dataclass
class Modelled:
    base: int
    size: int
    first: int
    chunks: int
    handle: object
    writes: list[range] = field(default_factory=list)  # in the order they came
    named: set[int] = field(default_factory=set)  # starts that a launch named

    def objects(self) -> list[tuple[range, bool]]:
        """What the writes run together to, and whether one of them alone filled it."""
        merged: list[range] = []
        for w in sorted(self.writes, key=lambda w: (w.start, -w.stop)):
            if merged and w.start < merged[-1].stop:
                merged[-1] = range(merged[-1].start, max(merged[-1].stop, w.stop))
            else:
                merged.append(w)
        return [(m, self._filled_by_one(m)) for m in merged]

    def _filled_by_one(self, m: range) -> bool:
        inside = [w for w in self.writes if w.start in m]
        last = max((i for i, w in enumerate(inside) if w == m), default=None)
        return last is not None and all(w.start == m.start for w in inside[last:])


class AllocMap(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.map = ffi.new("struct alloc_map *")
        self.allocations: list[Modelled] = []

    def teardown(self) -> None:
        for a in self.allocations:
            lib.alloc_map_remove(self.map, a.handle)

    @rule(slot=st.integers(0, 30), size=st.integers(1, 100), paged=st.booleans())
    def add(self, slot: int, size: int, paged: bool) -> None:
        base = 1000 * (slot + 1)
        if any(a.base == base for a in self.allocations):
            return
        chunks = -(-size // CHUNK) if paged else 0
        first = 0
        if paged:
            first = lib.alloc_map_room(self.map, chunks, LIMIT)
            taken = {c for a in self.allocations for c in range(a.first, a.first + a.chunks)}
            fits = [f for f in range(LIMIT - chunks + 1) if taken.isdisjoint(range(f, f + chunks))]
            assert first == (fits[0] if fits else 0xFFFFFFFF)
            if not fits:
                return
        handle = lib.alloc_map_add(self.map, base, size, first, chunks)
        self.allocations.append(Modelled(base, size, first, chunks, handle))

    @precondition(lambda self: self.allocations)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        a = data.draw(st.sampled_from(self.allocations))
        lib.alloc_map_remove(self.map, a.handle)
        self.allocations.remove(a)

    @rule(address=st.integers(900, 33000))
    def find(self, address: int) -> None:
        expected = [a.handle for a in self.allocations if a.base <= address < a.base + a.size]
        assert lib.alloc_map_find(self.map, address) == (expected[0] if expected else ffi.NULL)

    @precondition(lambda self: self.allocations)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        a = data.draw(st.sampled_from(self.allocations))
        offset = data.draw(st.integers(0, a.size - 1))
        size = data.draw(st.integers(1, a.size - offset))
        lib.alloc_note_write(a.handle, offset, size)
        a.writes.append(range(offset, offset + size))
        a.named &= {m.start for m, _ in a.objects()}

    @precondition(lambda self: self.allocations)
    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        a = data.draw(st.sampled_from(self.allocations))
        offset = data.draw(st.integers(0, a.size - 1))
        if offset in {m.start for m, _ in a.objects()}:
            a.named.add(offset)
        begin, end, known = ask(a.handle, offset)
        before = [o for o in a.named if o <= offset]
        after = [o for o in a.named if o > offset]
        home = [one for m, one in a.objects() if offset in m]
        assert begin == (max(before) if before else offset)
        assert end == (min(after) if home and after else a.size)
        assert known == bool(home and after and home[0])

    @invariant()
    def bounds_hold_every_paged_address(self) -> None:
        paged = [a for a in self.allocations if a.chunks]
        assert self.map.paged == len(paged)
        if paged:
            assert self.map.low == min(a.base for a in paged)
            assert self.map.high == max(a.base + a.size for a in paged)


AllocMap.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAllocMap = AllocMap.TestCase


@given(offsets=st.lists(st.integers(0, 999), min_size=1, unique=True))
@settings(max_examples=50, deadline=None)
def test_piecewise_uploads_do_not_cut_objects(offsets: list[int]) -> None:
    """Copied to in pieces, named only at its first byte: one object to the end."""
    the_map = ffi.new("struct alloc_map *")
    a = lib.alloc_map_add(the_map, 4096, 1000, 0, 1)
    for offset in [0, *offsets]:
        lib.alloc_note_write(a, offset, 1)
    assert ask(a, 0) == (0, 1000, False)
    lib.alloc_map_remove(the_map, a)


views = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 100)), max_size=8)


@given(before=views, after=views, whole=st.booleans())
@settings(max_examples=200, deadline=None)
def test_views_that_are_filled_and_used_do_not_cut_their_tensor(
    before: list[tuple[int, int]], after: list[tuple[int, int]], whole: bool
) -> None:
    """Whether a copy filled it whole, before or after, or a kernel, which nobody sees."""
    the_map = ffi.new("struct alloc_map *")
    a = lib.alloc_map_add(the_map, 4096, 1000, 0, 1)
    for offset, size in before if whole else ():
        lib.alloc_note_write(a, offset, size)
        ask(a, offset)
    if whole:
        lib.alloc_note_write(a, 0, 1000)
    for offset, size in after:
        lib.alloc_note_write(a, offset or 1, size)
        ask(a, offset or 1)
    assert ask(a, 0)[:2] == (0, 1000)
    lib.alloc_map_remove(the_map, a)


@given(sizes=st.lists(st.integers(1, 50), min_size=2, max_size=20), data=st.data())
@settings(max_examples=100, deadline=None)
def test_tensors_uploaded_one_by_one_stay_apart(sizes: list[int], data: st.DataObject) -> None:
    """Each whole, in any order, some written to again here and there."""
    the_map = ffi.new("struct alloc_map *")
    a = lib.alloc_map_add(the_map, 4096, 1000, 0, 1)
    tensors = [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    for offset, size in data.draw(st.permutations(tensors)):
        lib.alloc_note_write(a, offset, size)
    for offset, _ in tensors:
        ask(a, offset)
    certain = [True] * len(tensors)
    for i in data.draw(st.lists(st.integers(0, len(tensors) - 2))):
        offset, size = tensors[i]
        at = data.draw(st.integers(0, size - 1))
        lib.alloc_note_write(a, offset + at, 1)
        certain[i] = certain[i] and (at == 0 or size == 1)
    for (offset, size), one in list(zip(tensors, certain, strict=True))[:-1]:
        assert ask(a, offset) == (offset, offset + size, one)
    assert ask(a, tensors[-1][0]) == (tensors[-1][0], 1000, False)
    lib.alloc_map_remove(the_map, a)


def test_where_an_object_probably_ends() -> None:
    the_map = ffi.new("struct alloc_map *")
    a = lib.alloc_map_add(the_map, 4096, 1000, 0, 1)
    assert lib.alloc_probable_end(a, 0) == 1000  # nothing else was named
    assert lib.alloc_probable_end(a, 700) == 0
    assert lib.alloc_probable_end(a, 0) == 700
    lib.alloc_note_write(a, 700, 250)
    assert lib.alloc_probable_end(a, 700) == 950
    assert lib.alloc_probable_end(a, 300) == 700
    lib.alloc_map_remove(the_map, a)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_many_allocations_are_found(count: int) -> None:
    the_map = ffi.new("struct alloc_map *")
    handles = [lib.alloc_map_add(the_map, (i * 7919 % count) * 64 + 64, 64, 0, 0) for i in range(count)]
    for i, handle in enumerate(handles):
        assert lib.alloc_map_find(the_map, (i * 7919 % count) * 64 + 64 + 63) == handle
    assert lib.alloc_map_find(the_map, 63) == ffi.NULL
    assert lib.alloc_map_find(the_map, count * 64 + 64) == ffi.NULL
    for handle in handles:
        lib.alloc_map_remove(the_map, handle)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 3)), max_size=40), st.data())
def test_a_sparse_one_is_what_its_pieces_are(places: list[tuple[int, int]], data: st.DataObject) -> None:
    """Pieces of whole units come where there is room, and go, one at a time."""
    map_ = ffi.new("struct alloc_map *")
    a = lib.alloc_map_add_sparse(map_, 1000, 5, 9)
    lib.alloc_map_extend(map_, a, 140, 9)
    pieces: set[tuple[int, int]] = set()
    run = ffi.new("struct alloc_run *")
    for first, count in places:
        covered = {unit for begin, n in pieces for unit in range(begin, begin + n)}
        if (first, count) in pieces:
            lib.alloc_exclude(a, 10 * first, 10 * (first + count))
            pieces.remove((first, count))
        elif not covered & set(range(first, first + count)):
            assert lib.alloc_include(a, 10 * first, 10 * (first + count))
            pieces.add((first, count))
            lib.alloc_note_write(a, 10 * first + data.draw(st.integers(0, 9)), 1)
        covered = {unit for begin, n in pieces for unit in range(begin, begin + n)}
        for unit in range(14):
            at = 10 * unit + data.draw(st.integers(0, 9))
            assert lib.alloc_run_at(a, at, run) == (unit in covered)
            assert (lib.alloc_map_find(map_, 1000 + at) != ffi.NULL) == (unit in covered)
            if unit not in covered:
                continue
            begin = max((u + 1 for u in range(unit) if u not in covered), default=0)
            end = next(u for u in range(unit, 15) if u not in covered)
            assert (run.begin, run.end) == (10 * begin, 10 * end)
            assert lib.alloc_holds(a, at, 10 * end - at)
            assert not lib.alloc_holds(a, at, 10 * end - at + 1)
            low, high, _ = ask(a, at)
            assert 10 * begin <= low <= at < high <= 10 * end
        assert all(a.starts[i].offset // 10 in covered for i in range(a.start_count))
    # Indexes are set aside for all of it.
    assert lib.alloc_map_room(map_, 5, 64) == 0
    assert lib.alloc_map_room(map_, 6, 64) == 14
    lib.alloc_map_remove(map_, a)
    assert lib.alloc_map_room(map_, 6, 64) == 0
