# SPDX-License-Identifier: GPL-2.0-or-later
"""The C of the replay, and of the shim's predictor, called through cffi; compiled once a process."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cffi

from .model import Steps, TraceError

__all__ = ["Machine", "Pass", "cost", "replay"]

HERE = Path(__file__).parent
SHIM = HERE.parents[1] / "shim"


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes, speeds in bytes a second, times in seconds."""

    vram: int
    ram: int
    up: float = 54.7e9  #: RAM to VRAM: what the prototype's pipeline reached, PCIe 5 x16
    down: float = 54.7e9
    disk_read: float = 2.0e9
    disk_write: float = 2.0e9
    disk_latency: float = 1e-4
    launch: float = 5e-6
    move: float = 135e-6  #: cuMemUnmap, cuMemMap and cuMemSetAccess on the H100 of facts
    look_ahead: bool = True


@dataclass(frozen=True)
class Pass:
    """What one pass took, and the least it can take: chunks and seconds."""

    name: str
    seconds: float
    compute: float
    stalled: float
    moved_in: int
    moved_out: int
    fetched: int
    spilled: int
    in_bound: int
    out_bound: int
    fetched_bound: int


@functools.cache
def _library() -> tuple[Any, Any]:
    ffi = cffi.FFI()
    text = (HERE / "replay.h").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    ffi.cdef(re.sub(r"^#.*$", "", text, flags=re.M))
    with tempfile.TemporaryDirectory(prefix="greenboost-replay-") as folder:
        out = Path(folder) / "replay.so"
        sources = [HERE / "replay.c", HERE / "bound.c", SHIM / "predict.c"]
        build = ["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*build, f"-I{SHIM}", "-o", str(out), *map(str, sources)], check=True)
        return ffi, ffi.dlopen(str(out))


class _Trace:
    """The steps as the C code takes them; keeps the memory alive."""

    def __init__(self, steps: Steps) -> None:
        self.ffi, self.lib = _library()
        count = len(steps.first)
        self.steps = self.ffi.new("struct step[]", max(count, 1))
        for i in range(count):
            s = self.steps[i]
            s.first, s.count, s.tag = steps.first[i], steps.count[i], steps.tag[i]
            setattr(s, "pass", steps.passes[i])
            s.compute, s.frees, s.waits = steps.compute[i], steps.frees[i], steps.waits[i]
        self.chunks = self.ffi.from_buffer("uint32_t[]", steps.chunks)
        self.uses = self.ffi.from_buffer("uint8_t[]", steps.uses)
        self.trace = self.ffi.new("struct trace *")
        self.trace.steps, self.trace.step_count = self.steps, count
        self.trace.chunks, self.trace.uses = self.chunks, self.uses
        self.trace.chunk_count, self.trace.pass_count = steps.chunk_count, len(steps.names)


def _slots(steps: Steps, machine: Machine) -> int:
    return max(machine.vram - steps.small, 0) // steps.chunk


def replay(steps: Steps, machine: Machine) -> list[Pass]:
    """Run the steps on the machine. Raises TraceError if one of them does not fit."""
    trace = _Trace(steps)
    ffi, lib = trace.ffi, trace.lib
    settings = ffi.new("struct machine *")
    settings.slots = _slots(steps, machine)
    settings.ram = machine.ram // steps.chunk
    settings.chunk = steps.chunk
    fields: Mapping[str, float] = vars(machine)
    for name in ("up", "down", "disk_read", "disk_write", "disk_latency", "launch", "move", "look_ahead"):
        setattr(settings, name, fields[name])
    passes = ffi.new("struct pass[]", len(steps.names))
    for function in (lib.replay_bound, lib.replay_run):
        if failed := function(trace.trace, settings, passes):
            raise TraceError(
                f"step {failed} names {steps.count[failed - 1]} chunks of {steps.chunk} bytes: with "
                f"{settings.slots} in VRAM and {settings.ram} in RAM it does not fit"
            )
    return [
        Pass(
            name,
            p.seconds,
            p.compute,
            p.stalled,
            getattr(p, "in"),
            p.out,
            p.fetched,
            p.spilled,
            p.in_bound,
            p.out_bound,
            p.fetched_bound,
        )
        for name, p in zip(steps.names, passes, strict=True)
    ]


def cost(steps: Steps, machine: Machine) -> tuple[float, float]:
    """Nanoseconds of CPU that following the trace takes, a step and a use."""
    trace = _Trace(steps)
    a, b = trace.ffi.new("double *"), trace.ffi.new("double *")
    trace.lib.replay_cost(trace.trace, _slots(steps, machine), a, b)
    return a[0], b[0]
