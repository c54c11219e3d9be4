# SPDX-License-Identifier: GPL-2.0-or-later
"""Which model greenboost bench gpu builds for which machine, and what memory the modes get."""

from __future__ import annotations

from typing import Any

import pytest

from tierd.cli.bench_gpu_plan import QUICK, Limits, Shape, choose_limits, choose_shape
from tierd.cli.errors import CommandError, UsageError

GIB = 1 << 30
CHUNK = 16 << 20
PUBLISHED = Shape(16, 8192, 28672, 64, 8)


def shape_for(vram: float, ram: float = 128, **asked: Any) -> Shape:
    """GiB that are free."""
    return choose_shape(
        free_vram=int(vram * GIB), available_ram=int(ram * GIB), prompt=2048, tokens=32, **asked
    )


def limits_for(shape: Shape, *, vram: int | None = None, ram: int | None = None) -> Limits:
    return choose_limits(shape, prompt=2048, tokens=32, chunk=CHUNK, vram=vram, ram=ram)


def test_weights() -> None:
    # Counted by hand: q and o 8192^2, k and v 8192*1024, three of the MLP, two norms; 2 bytes each.
    layer = 2 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192)
    table = 2 * 8192 * 32000
    assert PUBLISHED.weights_bytes == 16 * layer + 2 * table + 2 * 8192
    assert PUBLISHED.weights_bytes == pytest.approx(28.4e9, rel=0.002)
    assert PUBLISHED.pass_bytes == PUBLISHED.weights_bytes - table


@pytest.mark.parametrize(
    ("vram", "hidden", "layers"),
    [(79, 8192, 16), (139, 8192, 16), (31, 8192, 16), (23, 8192, 11), (11.5, 4096, 19), (3.5, 2048, 8)],
)
def test_the_largest_that_fits(vram: float, hidden: int, layers: int) -> None:
    shape = shape_for(vram)
    assert (shape.hidden, shape.layers) == (hidden, layers)
    assert shape.weights_bytes + shape.working_bytes(2048, 32) < vram * GIB


def test_ram_bounds_it_too() -> None:
    shape = shape_for(79, ram=24)
    assert shape.weights_bytes < 18 * GIB
    assert limits_for(shape).ram < 24 * GIB


def test_what_is_asked_for() -> None:
    assert shape_for(79, layers=4) == Shape(4, 8192, 28672, 64, 8)
    assert shape_for(79, hidden=2048, layers=3) == Shape(3, 2048, 8192, 32, 8)
    assert shape_for(79, quick=True) == QUICK
    # Fewer layers than anybody would choose, where nothing smaller is allowed.
    assert shape_for(8, hidden=8192).layers < 8


@pytest.mark.parametrize(
    ("vram", "asked", "error", "says"),
    [
        (79, {"layers": 9000}, UsageError, "smaller --layers"),
        (79, {"hidden": 5000}, UsageError, "none of 8192, 4096, 2048, 1024"),
        (1, {}, CommandError, "end what else uses them"),
        (1, {"quick": True}, CommandError, "end what else uses them"),
    ],
)
def test_what_does_not_fit(vram: float, asked: dict[str, int], error: type[CommandError], says: str) -> None:
    with pytest.raises(error, match=says):
        shape_for(vram, **asked)


def test_limits() -> None:
    limits = limits_for(PUBLISHED)
    weights = PUBLISHED.weights_bytes
    overflow = weights - limits.vram
    assert limits.vram == weights * 2 // 5
    # Room for all of it, or for all that VRAM does not hold, and for what a pass works with.
    working = PUBLISHED.working_bytes(2048, 32)
    assert limits.ram >= weights + working
    assert limits.ram_nvme + limits.spill >= overflow + working
    assert limits.ram_nvme == pytest.approx(overflow / 2, abs=CHUNK)
    assert limits.ram % CHUNK == limits.ram_nvme % CHUNK == limits.spill % CHUNK == 0
    assert limits.ram_nvme < limits.cap() < limits.ram_nvme + 8 * GIB


@pytest.mark.parametrize(
    ("vram", "ram", "says"),
    [
        (29 * GIB, None, "--vram: 29.0 GiB holds the whole model"),
        (100 << 20, None, "--vram: 100.0 MiB is less than 8 chunks"),
        (None, 20 * GIB, "--ram: 20.0 GiB holds all that is not in VRAM"),
        (None, 1 << 20, "--ram: 1.0 MiB is less than 8 chunks"),
    ],
)
def test_limits_that_compare_nothing(vram: int | None, ram: int | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        limits_for(PUBLISHED, vram=vram, ram=ram)
