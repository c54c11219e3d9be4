# SPDX-License-Identifier: GPL-2.0-or-later
"""`greenboost run --pin`: what is to stay in VRAM does."""

from __future__ import annotations

import json

import pytest

from .pieces import BEGIN
from .tiers import Result, Runner

SMALL = "--chunk 2MiB --vram 24MiB --ram 64MiB --trace {dir}/trace.json --pin"

PROGRAM = (
    BEGIN
    + """
import json, subprocess
import numpy as np
MIB = 1 << 20
sizes = [4, 6, 4, 10, 6, 10]
held = []
for i, size in enumerate(sizes):
    held.append(c_uint64())
    assert cuda.cuMemAlloc_v2(byref(held[i]), c_size_t(size * MIB)) == 0
    assert cuda.cuMemsetD32_v2(held[i], ctypes.c_uint(i), c_size_t(size * MIB // 4)) == 0
got = np.zeros(10 * MIB // 4, dtype=np.uint32)
for _ in range(3):
    for i, address in enumerate(held):
        assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), address, c_size_t(sizes[i] * MIB)) == 0
        assert (got[: sizes[i] * MIB // 4] == i).all(), i
status = json.loads(subprocess.run(
    [sys.executable, "-m", "tierd.cli", "status", "--json"], stdout=subprocess.PIPE, check=True).stdout)
print(json.dumps(status["sessions"][0]["held_bytes"]))
"""
)


def run(runner: Runner, *rules: str) -> Result:
    result = runner.tiered(" --pin ".join([SMALL.removesuffix(" --pin"), *rules]), "-c", PROGRAM)
    assert result.status == 0, result.err
    return result


def moved(runner: Runner) -> set[int]:
    """Chunks that left VRAM."""
    events = json.loads((runner.folder / "trace.json").read_text())
    return {event["args"]["chunk"] for event in events if event["name"] == "evict"}


FIRST = {0, 1}  # 4 MiB
SECOND = {2, 3, 4}  # 6 MiB
THIRD = {5, 6}
FIFTH = {12, 13, 14}


def test_without_pins_all_leave(runner: Runner) -> None:
    result = run(runner)
    assert moved(runner) & FIRST
    assert result.report["pins"] == []


@pytest.mark.parametrize(
    ("rule", "stay"),
    [("size<=4MiB", FIRST | THIRD), ("size=5MiB..6MiB", SECOND | FIFTH), ("size=6MiB", SECOND | FIFTH)],
)
def test_pinned_sizes_stay(runner: Runner, rule: str, stay: set[int]) -> None:
    result = run(runner, rule)
    assert result.counters["evictions"] > 0
    assert not moved(runner) & stay
    assert f'"pinned": {len(stay) << 21}' in result.out
    assert result.counters["pins_refused"] == 0
    assert len(result.report["pins"]) == 1


def test_pinned_addresses_stay(runner: Runner) -> None:
    """All of the address space is more than fits: what comes first stays, and the rest is said."""
    result = run(runner, "0x1-0xffffffffffff")
    assert not moved(runner) & {0, 1, 2, 3, 4, 5, 6, 7}
    assert result.counters["pins_refused"] == 12
    assert result.err.count("not all stays in VRAM that a pin names (addresses 0x1 to ") == 1
    assert '"pinned": 16777216' in result.out


def test_several_rules(runner: Runner) -> None:
    run(runner, "size=4MiB", "size=10MiB..11MiB,0x10-0x20")
    assert not moved(runner) & (FIRST | THIRD)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--pin big", "--pin: 'big' is no rule"),
        ("--pin size>=17MiB", "--pin: size=17825792.."),
        ("--paging mapped --pin size=4MiB", "--pin: with --paging mapped nothing leaves VRAM"),
    ],
)
def test_refusals(runner: Runner, flags: str, says: str) -> None:
    result = runner.tiered(f"--chunk 2MiB --vram 24MiB --ram 64MiB {flags}", "-c", "")
    assert result.status == 2
    assert says in result.err
