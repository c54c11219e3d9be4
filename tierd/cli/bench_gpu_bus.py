# SPDX-License-Identifier: GPL-2.0-or-later
"""What the bus gives just now: plain copies before and after each phase of greenboost bench gpu.

A host's bus is shared, with other virtual machines as a rule. What was measured once, when it was quiet,
says little of the time in which a mode ran; as many bytes as a pass has to copy, copied beside it, do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from .bench_gpu_program import PROGRAMS, end_program, program_events, start_program
from .signals import HeldSignals

__all__ = ["Bus", "open_bus"]

_STARTING = 60.0
"""Seconds for a context."""
_COPYING = 120.0
"""Seconds for one answer."""
_TIMES = 3


@contextmanager
def open_bus(held: HeldSignals) -> Iterator[Bus]:
    """Raises Interrupted."""
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, str(PROGRAMS / "bus.py")]
        process = start_program(command, os.environ, held, lambda: None, errors)
        try:
            with held.let_in():
                bus = Bus(process, errors)
            yield bus
        finally:
            end_program(process)


class Bus:
    """bus.py, which waits to be asked. `silent` says why it does not answer; empty: it does."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.silent = ""
        self._process = process
        self._errors = errors
        self._answer(_STARTING)

    def rates(self, size: int) -> list[float]:
        """Bytes a second of a few copies of `size` bytes to VRAM; none when it is silent."""
        return [] if size <= 0 else [size / seconds for _ in range(_TIMES) if (seconds := self._copy(size))]

    def _copy(self, size: int) -> float | None:
        if self.silent:
            return None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended, which there being no answer says
            self._process.stdin.write(b"%d\n" % size)
            self._process.stdin.flush()
        answer = self._answer(_COPYING)
        return float(answer["seconds"]) if answer else None

    def _answer(self, seconds: float) -> dict[str, Any]:
        """Its next line; empty, and `silent` says why, if there is none."""
        answer = next(program_events(self._process, time.monotonic() + seconds), None)
        if answer is not None:
            return answer
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        self.silent = said[-1] if said else f"no answer in {seconds:.0f} s"
        return {}
