# SPDX-License-Identifier: GPL-2.0-or-later
"""What the bus gives just now: plain copies around the phases of greenboost bench gpu.

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
from contextlib import contextmanager
from typing import IO, Any

from .bench_gpu_program import PROGRAMS, end_program, program_events, start_program, tell_program
from .signals import HeldSignals

__all__ = ["Bus", "open_bus"]

_STARTING = 60.0
"""Seconds for a context."""
_SLOWEST = 1e9
"""Bytes a second: with fewer the answer comes too late."""
_TIMES = 3


@contextmanager
def open_bus(held: HeldSignals) -> Iterator[Bus]:
    """Raises Interrupted."""
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, str(PROGRAMS / "bus.py")]
        try:
            process = start_program(command, os.environ, held, lambda: None, errors)
        except (OSError, subprocess.SubprocessError) as error:
            yield Bus(None, errors, str(error))
            return
        try:
            bus = Bus(process, errors)
            with held.let_in():
                bus.wait_ready()
            yield bus
        finally:
            end_program(process)


class Bus:
    """bus.py, which waits to be asked. `silent` says why it does not answer; empty: it does."""

    def __init__(self, process: subprocess.Popen[bytes] | None, errors: IO[bytes], silent: str = "") -> None:
        self.silent = silent
        self._process = process
        self._errors = errors

    def wait_ready(self) -> None:
        self._answer(_STARTING)

    def rates(self, size: int) -> list[float]:
        """Bytes a second of a few copies of `size` bytes to VRAM; fewer or none when it is silent."""
        if size <= 0:
            return []
        self._copy(size // 4)  # what the program still had under way is over then
        return [size / seconds for _ in range(_TIMES) if (seconds := self._copy(size))]

    def _copy(self, size: int) -> float | None:
        if self.silent:
            return None
        assert self._process is not None
        tell_program(self._process, b"%d" % size)
        answer = self._answer(10 + size / _SLOWEST)
        return float(answer["seconds"]) if answer else None

    def _answer(self, seconds: float) -> dict[str, Any]:
        """Its next line; empty if there is none: then it is ended, and `silent` says why."""
        assert self._process is not None
        until = time.monotonic() + seconds
        answer = next(program_events(self._process, lambda: until), None)
        if answer is not None:
            return answer
        late = time.monotonic() >= until
        end_program(self._process)  # or it takes VRAM, or copies, beside what is measured next
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        ended = said[-1] if said else f"it ended with status {self._process.returncode}"
        self.silent = f"no answer in {seconds:.0f} s" if late else ended
        return {}
