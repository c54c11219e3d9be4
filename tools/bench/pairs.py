# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that prints what it measured, bare and under the shim in turn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOFTCUDA = ROOT / "tools/softcuda/build"


def in_turn(
    command: Sequence[str | Path], flags: Sequence[str], *, pairs: int, gpu: bool, vram: str
) -> tuple[list[float], list[float]]:
    """The number that `command` prints, `pairs` times bare and under `greenboost run FLAGS`.

    On NVIDIA's driver if `gpu`, else on the software device with so much `vram`. Ends the program with
    what was said when a run fails.
    """
    soft = {} if gpu else {"LD_LIBRARY_PATH": str(SOFTCUDA), "SOFTCUDA_VRAM": vram}
    greenboost = [sys.executable, "-m", "tierd.cli", "run", *flags, "--"]

    def printed(*before: str) -> float:
        environ = {**os.environ, **soft}
        done = subprocess.run(
            [*before, *command], env=environ, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{'under the shim' if before else 'bare'}: failed: {done.stderr}")
        return float(done.stdout)

    both = [(printed(), printed(*greenboost)) for _ in range(pairs)]
    return [bare for bare, _ in both], [shimmed for _, shimmed in both]
