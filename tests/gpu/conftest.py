# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose programs run on the GPU: those of the Python that the user has PyTorch and its like in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PYTHON = os.environ.get("GREENBOOST_TEST_PYTHON", sys.executable)
"""It; `tools/test --gpu` names the python3 of its caller."""


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Without one, or without PyTorch, nothing here is tested."""
    command = [PYTHON, "-c", "import torch; print(torch.cuda.is_available())"]
    probe = subprocess.run(command, capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no PyTorch in {PYTHON}: nothing is tested on a GPU")
    if probe.stdout.strip() != "True":
        pytest.skip("no NVIDIA GPU here: nothing is tested on one")
