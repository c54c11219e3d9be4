# SPDX-License-Identifier: GPL-2.0-or-later
"""The extent allocator under arbitrary histories: no extent is lost, none has two owners."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tierd.nvme.errors import ExtentError, NoSpace
from tierd.nvme.extents import Extent, ExtentAllocator


class Allocator(RuleBasedStateMachine):
    owned_by_us = Bundle("owned_by_us")
    given_back = Bundle("given_back")

    @initialize(count=st.integers(0, 6))
    def make(self, count: int) -> None:
        self.count = count
        self.extents = ExtentAllocator(3, count)
        self.owned: dict[int, Extent] = {}
        self.retired: set[int] = set()

    @rule(target=owned_by_us)
    def take(self) -> Extent | None:
        try:
            extent = self.extents.take()
        except NoSpace:
            assert len(set(self.owned) | self.retired) == self.count
            return None
        assert extent.index not in self.owned
        assert extent.index not in self.retired
        self.owned[extent.index] = extent
        return extent

    @rule(target=given_back, extent=consumes(owned_by_us))
    def give_back(self, extent: Extent | None) -> Extent | None:
        if extent is not None:
            self.extents.give_back(extent)
            del self.owned[extent.index]
        return extent

    @rule(extent=owned_by_us)
    def retire(self, extent: Extent | None) -> None:
        if extent is not None:
            self.extents.retire(extent)
            self.retired.add(extent.index)

    @rule(extent=given_back)
    def use_after_giving_back(self, extent: Extent | None) -> None:
        if extent is None:
            return
        for use in (self.extents.give_back, self.extents.retire, self.extents.check):
            with pytest.raises(ExtentError):
                use(extent)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "extents"):
            return
        lost = self.retired - set(self.owned)
        assert self.extents.owned == len(self.owned)
        assert self.extents.retired == len(self.retired)
        assert self.extents.total == self.count - len(lost)
        assert self.extents.free == self.extents.total - len(self.owned)
        for extent in self.owned.values():
            self.extents.check(extent)


TestAllocator = Allocator.TestCase
