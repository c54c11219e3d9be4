# SPDX-License-Identifier: GPL-2.0-or-later
"""Random calls from several threads (fuzz.c), and whether all memory is back once the module is gone.

GREENBOOST_FUZZ_CALLS has more of them made, GREENBOOST_FUZZ_SEED others; test_kmod.py passes both on.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.guest.kmod.device import (
    empty_pool,
    free_memory,
    insert_module,
    meminfo,
    modules,
    remove_module,
    set_parameter,
    wait_until_unused,
)
from tests.vm.guest.kmod.genl import Family

pytestmark = pytest.mark.vm

CALLS = int(os.environ.get("GREENBOOST_FUZZ_CALLS", "20000"))
SEED = int(os.environ.get("GREENBOOST_FUZZ_SEED", "1"))
THREADS = 4


def fuzz(seed: int, calls: int) -> None:
    with Family() as family:
        numbers = [family.id, family.group]
    program = Path(os.environ["KMOD_PROGRAMS"]) / "fuzz"
    # It holds no more than that, so that other processes always have enough.
    set_parameter("limit_mib", 400)
    subprocess.run([str(word) for word in (program, seed, calls, THREADS, *numbers)], check=True)


ACCOUNTED = (
    *("Buffers", "Cached", "AnonPages", "SReclaimable", "SUnreclaim"),
    *("KernelStack", "PageTables", "Percpu", "VmallocUsed"),
)


def unaccounted() -> int:
    """Bytes that nothing in the system says it uses."""
    return meminfo("MemTotal") - free_memory() - sum(map(meminfo, ACCOUNTED))


def steady(read: Callable[[], int], tolerance: int) -> int:
    """What a sum of counters says twice in a row.

    The kernel changes them meanwhile: once a second it takes up to 2016 pages (8 MiB) from a processor's
    list, and pages are in neither place, or in both, for who reads one before and the other after.
    """
    before = read()
    for _ in range(20):
        now = read()
        if abs(now - before) <= tolerance:
            return now
        before = now
    raise AssertionError(f"no two readings in a row agree to {tolerance} bytes")


def memory() -> tuple[int, int]:
    """What nothing in the system says it uses, and what slabs use, without the module, which then is back."""
    wait_until_unused()
    set_parameter("low_watermark", 0)
    empty_pool()
    remove_module("greenboost")
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert "greenboost" not in Path("/proc/slabinfo").read_text()
    try:
        return steady(unaccounted, 256 << 10), meminfo("SUnreclaim")
    finally:
        insert_module(modules()[0])


def test_random_calls_leave_nothing_behind() -> None:
    fuzz(SEED + 1_000_000, 2000)  # whatever is only allocated once
    pages, slabs = memory()
    fuzz(SEED, CALLS)
    pages_after, slabs_after = memory()
    lost, grown = (pages_after - pages) // 1024, (slabs_after - slabs) // 1024
    print(f"{CALLS} calls: {lost} KiB more in nobody's hands, {grown} KiB more in slabs")
    # Of the full run, that is a page in every thousand calls.
    assert lost < 4096
    assert grown < 4096
