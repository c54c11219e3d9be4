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


@dataclass
class Modelled:
    base: int
    size: int
    first: int
    chunks: int
    handle: object
    starts: dict[int, bool] = field(default_factory=dict)  # offset -> named


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
        a.starts = {o: n for o, n in a.starts.items() if not offset < o < offset + size}
        a.starts.setdefault(offset, False)

    @precondition(lambda self: self.allocations)
    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        a = data.draw(st.sampled_from(self.allocations))
        offset = data.draw(st.integers(0, a.size - 1))
        if offset in a.starts:
            a.starts[offset] = True
        begin, end, known = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("bool *")
        lib.alloc_object(a.handle, offset, begin, end, known)
        named = sorted(o for o, n in a.starts.items() if n)
        before = [o for o in named if o <= offset]
        after = [o for o in named if o > offset]
        assert begin[0] == (before[-1] if before else offset)
        assert end[0] == (after[0] if after else a.size)
        assert known[0] == bool(after)

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
    begin, end, known = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("bool *")
    for offset in [0, *offsets]:
        lib.alloc_note_write(a, offset, 1)
    lib.alloc_object(a, 0, begin, end, known)
    assert (begin[0], end[0], known[0]) == (0, 1000, False)
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
