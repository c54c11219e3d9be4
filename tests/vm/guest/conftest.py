# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests in here run in a guest of tools/vm, where tests/vm/test_guest.py starts them.

On the host they are not collected: they load modules and write to block devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.unit.nvme_harness import MemfdArena, arena_of
from tests.vm.guest.faulty import SLOTS
from tests.vm.guest.harness import null_blk

collect_ignore_glob = [] if "GREENBOOST_VM" in os.environ else ["test_*.py"]


@pytest.fixture
def arena() -> Iterator[MemfdArena]:
    with arena_of(SLOTS) as arena:
        yield arena


@pytest.fixture
def disks() -> Iterator[tuple[str, str]]:
    """Two devices in memory, of 48 extents each."""
    with null_blk(4, "disk0") as (first, _), null_blk(4, "disk1") as (second, _):
        yield first, second
