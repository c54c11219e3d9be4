# SPDX-License-Identifier: GPL-2.0-or-later
"""The libraries under test, built once, and a way to run programs with them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .tiers import Runner

SOFTCUDA = Path(__file__).parents[2] / "tools" / "softcuda"


@pytest.fixture(scope="session")
def softcuda() -> Path:
    """The software device's libcuda.so.1, up to date."""
    made = subprocess.run(["make", "-C", SOFTCUDA], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return SOFTCUDA / "build" / "libcuda.so.1"


@pytest.fixture(scope="session")
def shim(softcuda: Path) -> Path:
    """The shim, built to stand for the software device's functions."""
    folder = Path(__file__).parents[2] / "shim"
    made = subprocess.run(["make", "-C", folder], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder / "build" / "libgreenboost_cuda.so"


@pytest.fixture
def runner(softcuda: Path, shim: Path, tmp_path: Path) -> Runner:
    return Runner(softcuda, tmp_path)
