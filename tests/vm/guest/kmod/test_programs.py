# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests that are written in C: see ktap.h. test_kmod.py compiled them on the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("program", ["calls", "events", "mapping"])
def test_program(program: str) -> None:
    done = subprocess.run([Path(os.environ["KMOD_PROGRAMS"]) / program], stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    plan = next(line for line in done.stdout.splitlines() if line.startswith("1.."))
    passed = [line for line in done.stdout.splitlines() if line.startswith("ok ")]
    assert done.returncode == 0
    assert len(passed) == int(plan.removeprefix("1..")) > 0
