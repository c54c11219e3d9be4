# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of greenboost bench gpu: what was possible, and how it is said."""

from __future__ import annotations

from functools import partial

import pytest

from tierd.cli.bench_gpu_disk import DiskSpeed
from tierd.cli.bench_gpu_plan import Limits, Shape
from tierd.cli.bench_gpu_report import (
    Ceilings,
    Ideal,
    Result,
    as_json,
    ceiling_lines,
    disk_line,
    ideal_pass,
    launch_line,
    mode_line,
    table_head,
)

GB = 10**9
SHAPE = Shape(16, 8192, 28672, 64, 8)
OVERFLOW = SHAPE.pass_bytes - 10 * GB
LIMITS = Limits(vram=10 * GB, ram=30 * GB, ram_nvme=8 * GB, spill=20 * GB)
DISK = DiskSpeed("fio-3.33", sequential=2.0 * GB, random=1.5 * GB, block=16 << 20, depth=8)
CEILINGS = Ceilings(h2d=50.0 * GB, d2h=40.0 * GB, both=30.0 * GB, disk=DISK)
NOTHING = {"prefill": Ideal(None, None), "decode": Ideal(None, None)}
REFERENCE = Result("vram", passes={"prefill": [0.2], "decode": [0.06, 0.07, 0.9]})


def ideal(
    mode: str, phase: str, *, reference: Result | None = REFERENCE, ceilings: Ceilings = CEILINGS
) -> float | None:
    result = Result(mode)
    found = ideal_pass(result, phase, shape=SHAPE, limits=LIMITS, ceilings=ceilings, reference=reference)
    assert found.now is None
    return found.best


def test_ideal_is_the_longest_of_what_bounds_a_pass() -> None:
    copy = OVERFLOW / (50 * GB)
    assert 0.07 < copy < 0.4
    assert ideal("vram", "decode") == ideal("shim", "decode") == 0.07  # the median: nothing is to be moved
    for mode in ("paged", "mapped", "accelerate", "flextensor"):
        assert ideal(mode, "decode") == copy
    slow = Result("vram", passes={"prefill": [5.0], "decode": [0.01]})
    assert ideal("paged", "prefill", reference=slow) == 5.0
    for mode in ("paged+nvme", "accelerate+disk"):
        assert ideal(mode, "decode") == (OVERFLOW - 8 * GB) / (2 * GB)


def test_ideal_of_the_bus_as_it_was_then() -> None:
    result = Result("paged", bus={"decode": [20.0 * GB, 25.0 * GB, 50.0 * GB]})
    of = partial(ideal_pass, shape=SHAPE, limits=LIMITS, ceilings=CEILINGS, reference=REFERENCE)
    assert of(result, "decode") == Ideal(best=OVERFLOW / (50 * GB), now=OVERFLOW / (25 * GB))
    assert of(result, "prefill").now is None


def test_ideal_of_the_disk_as_it_was_then() -> None:
    of = partial(ideal_pass, shape=SHAPE, limits=LIMITS, ceilings=CEILINGS, reference=REFERENCE)
    rest = OVERFLOW - 8 * GB
    result = Result("paged+nvme", bus={"decode": [25.0 * GB]})
    assert of(result, "decode") == Ideal(best=rest / (2 * GB), now=None)
    result.disk["decode"] = [1.0 * GB, 1.5 * GB]
    assert of(result, "decode").now == rest / (1.25 * GB)
    result.disk["decode"] = [100.0 * GB]
    assert of(result, "decode").now == OVERFLOW / (25 * GB)


def test_ideal_without_what_would_bound_it() -> None:
    assert ideal("shim", "decode", reference=None) is None
    assert ideal("paged", "decode", reference=None) == OVERFLOW / (50 * GB)
    no_disk = Ceilings(50.0 * GB, 40.0 * GB, 30.0 * GB, None)
    assert ideal("paged+nvme", "decode", ceilings=no_disk) == OVERFLOW / (50 * GB)


def test_a_line() -> None:
    moved = {"h2d_bytes": 36 * GB, "d2h_bytes": 4 * GB, "nvme_read_bytes": 0, "nvme_written_bytes": 2 * GB}
    result = Result(
        "paged",
        load=12.34,
        passes={"prefill": [0.5], "decode": [0.5, 0.5]},
        moved={"decode": moved},
        vram=12 * GB,
        same=True,
    )
    words = mode_line(result, {"prefill": Ideal(0.4, 0.45), "decode": Ideal(0.25, 0.3)}).split()
    assert words == [
        "paged", "12.3", "0.500", "80.0%", "90.0%", "2.000", "50.0%", "60.0%",
        "18.00", "2.00", "0.00", "1.00", "12.00", "yes",
    ]  # fmt: skip
    # Every column has its heading above it.
    head = table_head().splitlines()[1:]
    assert len(head[0].split()) == len(words)
    line = mode_line(result, NOTHING)
    assert len(line) == max(map(len, head))


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (Result("mapped", "left out", "not available"), "mapped           left out: not available"),
        (Result("paged", "failed", "no room"), "paged            failed: no room"),
        (Result("paged", "cut", "after 9 s"), "paged            cut: after 9 s"),
    ],
)
def test_a_line_without_figures(result: Result, says: str) -> None:
    assert mode_line(result, NOTHING) == says


def test_a_mode_that_was_cut_shows_what_there_is() -> None:
    result = Result("paged", "cut", "after 9 s", passes={"prefill": [0.5], "decode": []}, same=False)
    line = mode_line(result, NOTHING)
    assert line.split()[:5] == ["paged", "-", "0.500", "-", "-"]
    assert line.endswith("NO  cut: after 9 s")
    assert not result.empty
    assert Result("paged", "cut").empty
    assert Result("paged", "failed", passes={"prefill": [0.5]}).empty


def test_json() -> None:
    result = Result(
        "paged", passes={"prefill": [0.5], "decode": [0.4, 0.2]}, gpu_passes={"decode": [0.3, 0.1]}
    )
    answer = as_json(result, {"prefill": Ideal(0.1, 0.2), "decode": Ideal(None, None)})
    prefill, decode = answer["prefill"], answer["decode"]
    assert isinstance(prefill, dict)
    assert isinstance(decode, dict)
    assert (prefill["pass_seconds"], prefill["share_of_ideal"]) == (0.5, 0.2)
    assert prefill["share_of_ideal_now"] == 0.4
    assert (decode["gpu_pass_seconds"], decode["ideal_pass_seconds"]) == (0.2, None)
    assert decode["share_of_ideal"] is decode["share_of_ideal_now"] is None
    assert answer["tokens_per_second"] == pytest.approx(1 / 0.3)
    assert as_json(Result("vram", "left out"), NOTHING)["tokens_per_second"] is None


def test_how_fast_t3_was_read() -> None:
    passes = {"prefill": [5.0, 6.0, 1.0], "decode": [4.0]}
    result = Result("paged+nvme", passes=passes, ended=frozenset(("prefill", "decode")))
    assert disk_line(result) is None
    result.moved = {
        "prefill": {"spill_read_bytes": 18 * GB, "spill_reading_ns": 11_400_000_000},
        "decode": {"spill_read_bytes": 8 * GB, "spill_reading_ns": 3_600_000_000},
    }
    assert disk_line(result) is None
    # Of the same length: their mean is what they were together.
    result.disk["decode"] = [1.0 * GB, 1.0 * GB, 5.5 * GB]
    assert disk_line(result) == (
        "NVMe read for 90.0% of decode, 2.00 GB/s, 80.0% of what the disk gave beside it"
    )
    result.disk["prefill"] = [2.0 * GB]
    assert disk_line(result) == (
        "NVMe read for 95.0% of prefill, 1.50 GB/s, 75.0%; "
        "for 90.0% of decode, 2.00 GB/s, 80.0% of what the disk gave beside it"
    )
    prefill = as_json(result, NOTHING)["prefill"]
    assert isinstance(prefill, dict)
    assert (prefill["nvme_read_bytes_per_second"], prefill["nvme_read_share_of_beside"]) == (1.5 * GB, 0.75)
    assert prefill["nvme_reading_share"] == 0.95
    result.ended = frozenset(("prefill",))  # decoding was cut: what of a pass is not timed was counted
    assert disk_line(result) == (
        "NVMe read for 95.0% of prefill, 1.50 GB/s, 75.0% of what the disk gave beside it"
    )


def test_what_shares_are_of() -> None:
    text = "\n".join(ceiling_lines(SHAPE, LIMITS, CEILINGS))
    assert "50.00 GB/s up" in text
    assert f"leave {OVERFLOW / GB:.1f} GB to copy: {OVERFLOW / 50 / GB:.3f} s" in text
    assert "2.00 GB/s in order, 1.50 GB/s in random order" in text


def test_launches() -> None:
    assert launch_line([Result("vram", launch=4e-6)]) is None
    line = launch_line([Result("vram", launch=4e-6), Result("shim", launch=5e-6)])
    assert line is not None
    assert "4.00 us bare, 5.00 us under the shim" in line
