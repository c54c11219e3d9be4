# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory from the NUMA node that was asked for, in a guest of two."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm.guest.kmod.device import (
    MIB,
    attribute,
    buffer,
    bytes_on_nodes,
    empty_pool,
    every_other_free,
    free_memory,
    meminfo,
    torn_memory,
    wait_until_unused,
)

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        not Path("/sys/devices/system/node/node1").exists(), reason="one NUMA node: nodes are NOT tested"
    ),
]

SIZE = 200 * MIB
SLACK = 20 * MIB

SYS_SET_MEMPOLICY, MPOL_DEFAULT, MPOL_BIND = 238, 0, 2


def free() -> list[int]:
    return [free_memory(node) for node in (0, 1)]


def set_mempolicy(policy: int, nodes: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.c_ulong(nodes)
    if libc.syscall(SYS_SET_MEMPOLICY, policy, ctypes.byref(mask), 64):
        raise OSError(ctypes.get_errno(), "set_mempolicy")


@contextmanager
def pages_from(node: int) -> Iterator[None]:
    """Those that this process touches meanwhile."""
    set_mempolicy(MPOL_BIND, 1 << node)
    try:
        yield
    finally:
        set_mempolicy(MPOL_DEFAULT, 0)


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


def test_its_own_are_compacted_before_others_are_taken() -> None:
    """Also where compaction has just failed, after which the kernel puts it off."""
    with pages_from(1):
        with torn_memory(meminfo("MemFree", 1) - 100 * MIB), buffer(SIZE, 1):
            pass
        wait_until_unused()
        empty_pool()
        # Not what processors keep in lists of their own, which serves no other one.
        with every_other_free(meminfo("MemFree", 1) - 100 * MIB, MIB // 16), buffer(SIZE, 1) as (fd, _):
            assert bytes_on_nodes(fd, SIZE)[1] > SIZE * 3 // 4


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
