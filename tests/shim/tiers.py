# SPDX-License-Identifier: GPL-2.0-or-later
"""Running programs in tiers on the software device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from . import sanitizer

__all__ = ["PROGRAMS", "ROOT", "Result", "Runner"]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"


@dataclass
class Result:
    """What a program under greenboost did."""

    status: int
    out: str
    err: str
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.report["total"]["counters"]
        return counters


class Runner:
    """Runs programs under greenboost on a software device of so much VRAM."""

    def __init__(self, softcuda: Path, shim: Path, folder: Path) -> None:
        self.softcuda = softcuda
        self.shim = shim
        self.folder = folder

    def environment(self, device: str, **more: str) -> dict[str, str]:
        # Poison: memory that was never written must not happen to hold the right bytes.
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.softcuda.parent),
            "SOFTCUDA_VRAM": device,
            "SOFTCUDA_POISON": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "GREENBOOST_SHIM": str(self.shim),
            **sanitizer.environment(self.folder),
            **more,
        }

    def served(self, socket: Path, vram: int, **more: str) -> dict[str, str]:
        """The environment of a command() on a device of 64 MiB, of which it may use `vram` bytes, with the
        daemon at `socket`."""
        return self.environment(
            "64MiB",
            # With a sanitizer, what command() begins with sees to that.
            **({} if sanitizer.SANITIZE else {"LD_PRELOAD": str(self.shim)}),
            GREENBOOST_SOCKET=str(socket),
            GREENBOOST_CUDA_DRIVER=str(self.softcuda),
            GREENBOOST_VRAM=str(vram),
            **more,
        )

    def command(self, *argv: str) -> list[str]:
        """Python under the shim, in the environment that served() makes."""
        return [*sanitizer.prefix(self.shim), sys.executable, *argv]

    async def attached(self, socket: Path, vram: int, *argv: str) -> tuple[int, bytes]:
        """Python under the shim beside a daemon of the test's own: its exit status, and what it said."""
        done = await trio.run_process(
            self.command(*argv),
            env=self.served(socket, vram),
            cwd=ROOT,
            check=False,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
        )
        assert (found := sanitizer.findings(self.folder)) == "", found
        return done.returncode, done.stdout

    def tiered(
        self, flags: str, *argv: object, device: str = "64MiB", timeout: float = 120, **environment: str
    ) -> Result:
        """`greenboost run FLAGS -- python ARGV`; {dir} in flags is a directory of this test's own."""
        report = self.folder / "report.json"
        run = [sys.executable, "-m", "tierd.cli", "run", "--json", str(report)]
        run += flags.format(dir=self.folder).split()
        done = subprocess.run(
            [*run, "--", *sanitizer.prefix(self.shim), sys.executable, *map(str, argv)],
            env=self.environment(device, **environment),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout * sanitizer.SLOWER,
        )
        assert (found := sanitizer.findings(self.folder)) == "", found
        figures = json.loads(report.read_text()) if report.exists() else {}
        return Result(done.returncode, done.stdout, done.stderr, figures)
