# SPDX-License-Identifier: GPL-2.0-or-later
"""The libraries under test, built once, and a way to run programs with them."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

import pytest

from . import sanitizer
from .tiers import Runner

SOFTCUDA = Path(__file__).parents[2] / "tools" / "softcuda"


def make(folder: Path, *arguments: str) -> None:
    """make in the folder; another process of this test run may want the same."""
    with open(folder / "Makefile") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "-C", str(folder), *arguments]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="session")
def softcuda() -> Path:
    """The software device's libcuda.so.1, up to date."""
    make(SOFTCUDA, *sanitizer.make_arguments())
    return sanitizer.build_folder(SOFTCUDA, "/") / "libcuda.so.1"


@pytest.fixture(scope="session")
def shim(softcuda: Path) -> Path:
    """The shim, built to stand for the software device's functions."""
    folder = Path(__file__).parents[2] / "shim"
    make(folder, *sanitizer.make_arguments())
    return sanitizer.build_folder(folder, "-") / "libgreenboost_cuda.so"


@pytest.fixture
def runner(softcuda: Path, shim: Path, tmp_path: Path) -> Runner:
    return Runner(softcuda, shim, tmp_path)
