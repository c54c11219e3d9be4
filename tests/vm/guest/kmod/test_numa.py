# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory from the NUMA node that was asked for, in a guest of two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.guest.kmod.device import MIB, attribute, buffer, empty_pool, free_memory, wait_until_unused

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        not Path("/sys/devices/system/node/node1").exists(), reason="one NUMA node: nodes are NOT tested"
    ),
]

SIZE = 200 * MIB
SLACK = 20 * MIB


def free() -> list[int]:
    return [free_memory(node) for node in (0, 1)]


@pytest.fixture(autouse=True)
def nothing_idle() -> None:
    empty_pool()


@pytest.mark.parametrize("node", [0, 1])
def test_it_comes_from_there(node: int) -> None:
    before = free()
    with buffer(SIZE, node) as (_, huge):
        assert huge == SIZE
        taken = [was - now for was, now in zip(before, free(), strict=True)]
        assert SIZE - SLACK < taken[node] < SIZE + SLACK
        assert taken[1 - node] < SLACK


def test_what_is_idle_serves_its_own_node() -> None:
    with buffer(SIZE, 0), buffer(SIZE // 2, 1):
        pass
    wait_until_unused()
    assert attribute("pool_bytes") == SIZE + SIZE // 2
    before = free()
    with buffer(SIZE, 1):
        assert attribute("pool_bytes") == SIZE
        assert SIZE // 2 - SLACK < before[1] - free()[1] < SIZE // 2 + SLACK
    wait_until_unused()
    # Who names no node gets what there is.
    with buffer(2 * SIZE):
        assert attribute("pool_bytes") == 0


def test_when_it_has_none_left_others_have() -> None:
    before = free()
    with buffer(before[1] // MIB * MIB + SIZE, 1):
        now = free()
        assert now[1] < before[1] // 4
        assert before[0] - now[0] > SIZE // 2
