# SPDX-License-Identifier: GPL-2.0-or-later
"""The extent allocator under arbitrary histories: no extent is lost, none has two owners."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tierd.nvme.errors import ExtentError, NoSpace
from tierd.nvme.extents import ExtentAllocator


class Allocator(RuleBasedStateMachine):
    owned_by_us = Bundle("owned_by_us")
    given_back = Bundle("given_back")

    @initialize(count=st.integers(0, 6))
    def make(self, count: int) -> None:
        self.count = count
        self.extents = ExtentAllocator(count)
        self.owned: dict[int, int] = {}  # and their generations
        self.seen: set[tuple[int, int]] = set()
        self.retired: set[int] = set()

    @rule()
    def next_daemon(self) -> None:
        """Which has another key, and finds out anew which extents fail."""
        self.extents = ExtentAllocator(self.count)
        self.extents.inherit(self.owned)
        self.retired.clear()
        self.seen = set(self.owned.items())

    @rule(target=owned_by_us)
    def take(self) -> int | None:
        try:
            index = self.extents.take()
        except NoSpace:
            assert len(set(self.owned) | self.retired) == self.count
            return None
        assert index not in self.owned
        assert index not in self.retired
        self.owned[index] = self.extents.generation(index)
        # What a cipher makes of both is never used twice.
        assert (index, self.owned[index]) not in self.seen
        self.seen.add((index, self.owned[index]))
        return index

    @rule(target=given_back, index=consumes(owned_by_us))
    def give_back(self, index: int | None) -> int | None:
        if index is not None:
            self.extents.give_back(index)
            del self.owned[index]
        return index

    @rule(index=owned_by_us)
    def retire(self, index: int | None) -> None:
        if index is not None:
            self.extents.retire(index)
            self.retired.add(index)

    @rule(index=given_back)
    def use_after_giving_back(self, index: int | None) -> None:
        if index is None or index in self.owned:
            return
        for use in (self.extents.give_back, self.extents.retire, self.extents.generation):
            with pytest.raises(ExtentError):
                use(index)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "extents"):
            return
        lost = self.retired - set(self.owned)
        assert self.extents.owned == len(self.owned)
        assert self.extents.retired == len(self.retired)
        assert self.extents.total == self.count - len(lost)
        assert self.extents.free == self.extents.total - len(self.owned)
        for index, generation in self.owned.items():
            assert self.extents.generation(index) == generation


TestAllocator = Allocator.TestCase
