# SPDX-License-Identifier: GPL-2.0-or-later
"""The tiers as sessions share them."""

from __future__ import annotations

from pathlib import Path

from tests.unit.nvme_harness import CHUNK, spill_size
from tierd.arena import open_pool
from tierd.nvme import SpillFile, open_spill_set
from tierd.tiers import Tiers


async def test_a_path_that_comes_or_goes_is_seen_at_once(tmp_path: Path) -> None:
    """Also by who only looks: what an application is told of its memory."""
    async with open_spill_set(chunk=CHUNK) as store:
        with open_pool(limit=1, arena_bytes=4 * CHUNK, chunk=CHUNK) as pool:
            tiers = Tiers(pool, store)
            assert tiers.state.limits.extents == 0
            path = await store.add(SpillFile.open(str(tmp_path / "0"), spill_size(3), CHUNK))
            assert tiers.state.limits.extents == 3
            tiers.withdraw(path)
            assert tiers.state.limits.extents == 0
