# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of `greenboost run --trace`: an array of Chrome's trace events.

Every traced process appends lines of its own (shim/trace_write.c), each of one event and a comma. The
array's end may be missing, and viewers open it all the same; it is put there where that can be done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["begin", "end", "now"]


def now() -> float:
    """Microseconds of the clock that the events have."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) / 1e3


def begin(file: Path) -> None:
    """An array without events in `file`, whatever was in it. Raises OSError."""
    file.write_bytes(b"[\n")


def end(file: Path, argv: Sequence[str], began: float, status: int, *, close: bool) -> None:
    """Add the command itself as the last event, and `close` the array: nobody appends any more.

    `began` is now()'s. Raises OSError.
    """
    event = {
        "name": " ".join(argv)[:200],
        "cat": "command",
        "ph": "X",
        "ts": began,
        "dur": now() - began,
        "pid": os.getpid(),
        "tid": os.getpid(),
        "args": {"status": status},
    }
    named = {"name": "process_name", "ph": "M", "pid": os.getpid(), "args": {"name": "greenboost run"}}
    lines = f"{json.dumps(named)},\n{json.dumps(event)}" + ("\n]\n" if close else ",\n")
    with open(file, "r+b") as trace:
        _cut_torn_line(trace.fileno())
        trace.seek(0, os.SEEK_END)
        trace.write(lines.encode())


def _cut_torn_line(fd: int) -> None:
    """Take off what follows the last whole line: a process was killed while it wrote."""
    size = os.fstat(fd).st_size
    at = size
    while at:
        at = max(0, at - 65536)
        newline = os.pread(fd, 65536, at).rfind(b"\n")
        if newline >= 0:
            if at + newline + 1 < size:
                os.ftruncate(fd, at + newline + 1)
            return
