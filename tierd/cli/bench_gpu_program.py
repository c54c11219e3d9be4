# SPDX-License-Identifier: GPL-2.0-or-later
"""A program of benchgpu/ while it runs: what it says, and its end when it must end.

It prints JSON objects, one a line, and waits at each that is a mark until we answer, so that counters
are read between two passes and not during one. Its standard error goes to a file.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .signals import HeldSignals, Interrupted

__all__ = [
    "PROGRAMS",
    "Said",
    "end_program",
    "program_events",
    "run_program",
    "start_program",
    "tell_program",
]

PROGRAMS = Path(__file__).parent / "benchgpu"
"""A directory of their own: a script's is the first where its imports are looked for."""

_LOOK = 0.02
"""Seconds between two looks at what the GPU has in use."""
_GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""
_TAIL = 8192
"""Bytes of what it said last that are kept."""
_PR_SET_PDEATHSIG = 1  # prctl(2)

_libc = ctypes.CDLL(None)


@dataclass(slots=True)
class Said:
    """What became of a program."""

    events: list[dict[str, Any]] = field(default_factory=list)
    status: int = 0  #: as a shell gives it
    cut: bool = False  #: it was ended since its time was over
    seconds: float = 0.0
    tail: str = ""  #: the end of its standard error

    def last(self, event: str) -> Mapping[str, Any]:
        """The last event of this name; empty if there was none."""
        return next((one for one in reversed(self.events) if one.get("event") == event), {})

    def complaint(self) -> str:
        """The line of its standard error that says best why it failed."""
        lines = [line.strip() for line in self.tail.splitlines() if line.strip()]
        # A Python error, before what others said while it went down.
        errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
        return (errors or lines or [f"exit status {self.status}"])[-1]


def run_program(
    command: Sequence[str],
    said: Said,
    *,
    environ: Mapping[str, str],
    held: HeldSignals,
    seconds: float,
    at_mark: Callable[[str], None] = lambda name: None,
    look: Callable[[], None] = lambda: None,
    enter: Callable[[], None] = lambda: None,
) -> None:
    """Run `command` for `seconds` at most, and put down in `said` what it says.

    `at_mark` is called with the name of each mark, and with "cut" before the program is ended because
    its time, or ours, is over; `look` every _LOOK seconds; `enter` in the new process before the command.
    What `at_mark` takes is not of the program's time. Raises OSError when it cannot be started, and
    signals.Interrupted, when `said` has what there was; nothing of the program is left then.
    """
    began = time.monotonic()
    ends = began + seconds

    def deadline() -> float:
        return ends

    with tempfile.TemporaryFile() as errors:
        process = start_program(command, environ, held, enter, errors)
        try:
            with held.let_in():
                for event in program_events(process, deadline, look):
                    said.events.append(event)
                    if event.get("event") == "mark":
                        came = time.monotonic()
                        at_mark(str(event.get("name")))
                        ends += time.monotonic() - came
                        tell_program(process)
                try:
                    process.wait(max(ends - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    said.cut = True
                    at_mark("cut")
        except Interrupted:
            at_mark("cut")
            raise
        finally:
            end_program(process)
            said.seconds = time.monotonic() - began
            said.status = process.returncode if process.returncode >= 0 else 128 - process.returncode
            said.tail = _tail(errors)


def start_program(
    command: Sequence[str],
    environ: Mapping[str, str],
    held: HeldSignals,
    enter: Callable[[], None],
    errors: IO[bytes],
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, to be killed when we are; `enter` is called in it before.

    Raises OSError. End it with end_program().
    """
    parent = os.getpid()

    def before_exec() -> None:
        # As in application.py: when we are killed it must not keep the GPU.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        enter()
        signal.pthread_sigmask(signal.SIG_SETMASK, held.before)

    return subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
        preexec_fn=before_exec,
    )


def program_events(
    process: subprocess.Popen[bytes], deadline: Callable[[], float], look: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """What it prints, to the end of its output or to the deadline. What is no JSON object is dropped."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    begun = b""
    while (left := deadline() - time.monotonic()) > 0:
        look()
        ready, _, _ = select.select([output], [], [], min(left, _LOOK))
        if not ready:
            continue
        piece = os.read(output, 65536)
        if not piece:
            return
        *lines, begun = (begun + piece).split(b"\n")
        for line in lines:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event


def tell_program(process: subprocess.Popen[bytes], line: bytes = b"") -> None:
    """Give it a line, which it waits for. If it has ended, the end of its output says so."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(line + b"\n")
        process.stdin.flush()


def end_program(process: subprocess.Popen[bytes]) -> None:
    """End it, and all in its session that is left, and wait for it. The second time does nothing."""
    if process.stdin is not None and process.stdin.closed:
        return  # its number may be another's by now
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    _signal(process, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0, os.SEEK_END)
    errors.seek(max(errors.tell() - _TAIL, 0))
    return errors.read().decode(errors="replace")
