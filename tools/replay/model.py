# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace as the replay runs it: steps that use chunks."""

from __future__ import annotations

import json
import lzma
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Steps", "TraceError", "read", "steps"]

READS, CHANGES, OVERWRITES = range(3)


class TraceError(Exception):
    """The trace cannot be read; says which line and why."""


@dataclass
class Steps:
    """Launches, copies and frees, cut into chunks of one size.

    ``chunks`` and ``uses`` are the uses of all steps, one after the other; step i has those from
    ``first[i]`` to ``first[i] + count[i]``.
    """

    chunk: int  #: bytes
    first: array[int] = field(default_factory=lambda: array("I"))
    count: array[int] = field(default_factory=lambda: array("I"))
    tag: array[int] = field(default_factory=lambda: array("I"))
    passes: array[int] = field(default_factory=lambda: array("I"))
    #: seconds of the program since the step before: while the GPU had nothing to do, and while it computed;
    #: there it may have waited for it. inf: not known
    host: array[float] = field(default_factory=lambda: array("d"))
    beside: array[float] = field(default_factory=lambda: array("d"))
    compute: array[float] = field(default_factory=lambda: array("d"))
    frees: array[int] = field(default_factory=lambda: array("B"))
    waits: array[int] = field(default_factory=lambda: array("B"))
    chunks: array[int] = field(default_factory=lambda: array("I"))
    uses: array[int] = field(default_factory=lambda: array("B"))
    chunk_count: int = 0
    names: list[str] = field(default_factory=lambda: ["start"])  #: of passes
    small: int = 0  #: most bytes at once in allocations smaller than a chunk
    untimed: int = 0  #: launches without a time on the GPU


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a trace, plain or xz. The last may be cut off: the program was killed."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                yield json.loads(text)
            except ValueError as error:
                if not text.endswith(b"\n"):
                    return
                raise TraceError(f"{path}:{number}: {error}") from None


@dataclass
class _Allocation:
    bytes: int
    first: int  #: chunk; -1: smaller than a chunk, so direct
    read_only: list[tuple[int, int]] = field(default_factory=list)

    def reads(self, begin: int, end: int) -> bool:
        return any(low <= begin and end <= high for low, high in self.read_only)


class _Converter:
    def __init__(self, chunk: int, unknown: int) -> None:
        self.steps = Steps(chunk)
        self.unknown = unknown
        self.allocations: dict[int, _Allocation] = {}
        self.small = 0
        self.waits = False
        self.latest = self.gpu = (
            0.0  # in the recorded run, microseconds: the last step; until when it computed
        )
        self.free: dict[int, list[int]] = {}  # of so many chunks: where

    def _program(self, line: dict[str, Any]) -> tuple[float, float]:
        """What the program did since the last step: see Steps.host."""
        if "t" not in line:
            return 0.0, math.inf
        now = line["t"]
        passed = max(now - self.latest, 0.0)
        idle = min(max(now - self.gpu, 0.0), passed)
        self.latest = now
        self.gpu = max(self.gpu, now) + line.get("gpu", 0.0)
        return idle / 1e6, (passed - idle) / 1e6

    def _step(self, line: dict[str, Any], used: dict[int, int], frees: bool = False) -> None:
        steps = self.steps
        steps.first.append(len(steps.chunks))
        steps.count.append(len(used))
        # Kinds of copies are told apart from launches, not from each other.
        steps.tag.append(int(line.get("f", -1)) + 1)
        steps.passes.append(len(steps.names) - 1)
        steps.compute.append(line.get("gpu", 0.0) / 1e6)
        host, beside = self._program(line)
        steps.host.append(host)
        steps.beside.append(beside)
        steps.untimed += line["op"] == "launch" and "gpu" not in line
        steps.frees.append(frees)
        steps.waits.append(self.waits)
        self.waits = False
        for index in sorted(used):
            steps.chunks.append(index)
            steps.uses.append(used[index])

    def _objects(self, line: dict[str, Any]) -> dict[int, int]:
        used: dict[int, int] = {}
        size = self.steps.chunk
        for number, begin, end, *more in line.get("o", ()):
            allocation = self.allocations[number]
            if allocation.first < 0:
                continue
            mode = more[0] if more else ""
            for index in range(begin // size, (end - 1) // size + 1):
                low, high = max(begin, index * size), min(end, (index + 1) * size)
                use = self.unknown
                if mode == "r" or (mode in "o" and allocation.reads(low, high)):
                    use = READS
                elif mode == "w":
                    whole = low == index * size and high == min(allocation.bytes, (index + 1) * size)
                    use = OVERWRITES if whole else CHANGES
                elif mode == "m":
                    use = CHANGES
                chunk = allocation.first + index
                before = used.get(chunk, use)
                # What is read besides is not overwritten unseen.
                used[chunk] = CHANGES if {before, use} == {READS, OVERWRITES} else max(before, use)
                if OVERWRITES in (before, use) and before != use:
                    used[chunk] = CHANGES
        return used

    def line(self, line: dict[str, Any]) -> None:
        size = self.steps.chunk
        op = line.get("op")
        if op == "alloc":
            chunks = -(-line["bytes"] // size)
            first = -1
            if line["bytes"] >= size:
                places = self.free.get(chunks)
                first = places.pop() if places else self.steps.chunk_count
                self.steps.chunk_count = max(self.steps.chunk_count, first + chunks)
            else:
                self.small += line["bytes"]
                self.steps.small = max(self.steps.small, self.small)
            self.allocations[line["a"]] = _Allocation(line["bytes"], first)
        elif op == "free":
            gone = self.allocations.pop(line["a"])
            if gone.first < 0:
                self.small -= gone.bytes
            else:
                chunks = -(-gone.bytes // size)
                self._step(line, dict.fromkeys(range(gone.first, gone.first + chunks), READS), frees=True)
                self.free.setdefault(chunks, []).append(gone.first)
        elif op in ("launch", "copy"):
            used = self._objects(line)
            if used or line.get("gpu"):
                self._step(line, used)
            # To the host, most probably: PyTorch and others wait for that.
            self.waits = self.waits or (op == "copy" and [o[3:4] for o in line["o"]] == [[]])
        elif op == "pass":
            self.steps.names.append(line["name"])
            self.waits = True
        elif op == "readonly":
            for number, begin, end in line["o"]:
                self.allocations[number].read_only.append((begin, end))
        elif op == "writable":
            for number, begin, end in line["o"]:
                ranges = self.allocations[number].read_only
                ranges[:] = [r for r in ranges if r[1] <= begin or r[0] >= end]


def steps(lines: Iterable[dict[str, Any]], chunk: int, *, unknown: str = "changes") -> Steps:
    """Cut a trace into chunks of so many bytes.

    What a launch does to an object of which nothing is known: it "changes" it, or "reads" it.
    """
    converter = _Converter(chunk, {"changes": CHANGES, "reads": READS}[unknown])
    version = None
    for line in lines:
        if "greenboost_trace" in line:
            if version is not None:
                break  # another process
            version = line["greenboost_trace"]
            if version != 1:
                raise TraceError(f"the trace is of version {version}; this reads version 1")
            continue
        if version is None:
            raise TraceError('no trace: it does not begin with {"greenboost_trace": 1, ...}')
        converter.line(line)
    return converter.steps
