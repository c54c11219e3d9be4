# SPDX-License-Identifier: GPL-2.0-or-later
"""The C of the replay, and of the shim's pager, called through cffi; compiled once a process."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
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
OWN = ("replay", "machine", "bound", "untraced")
SHIMS = (
    *(
        "residency",
        "release",
        "choose",
        "meant",
        "sparse",
        "pager",
        "in_place",
        "vram",
        "lower",
        "lower_arenas",
        "lower_transfer",
        "mover",
        "ticket",
        "timing",
    ),
    *("predict", "predict_log", "predict_plan", "grace", "guess", "alloc_map", "pins", "address"),
)
"""The shim's own files: what it decides, and in which order, is decided by them here too."""


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
    host: float = 1.0  #: the program takes so many times what was recorded, as far as that is known
    launch: float = 5e-6  #: the program's time a launch where it is not
    move: float = 135e-6  #: cuMemUnmap, cuMemMap and cuMemSetAccess on an H100
    sum: float = 3e-5  #: a checksum, which took 90 us of 64 MiB on an H100
    sum_speed: float = 1.1e12
    pin: float = 20e9  #: RAM made by the daemon and registered: a GiB each 52 ms, on an H100
    look_ahead: bool = True


@dataclass(frozen=True)
class Pass:
    """What one pass took, and the least it can take: chunks and seconds."""

    name: str
    seconds: float
    least: float
    compute: float
    stalled: float
    moved_in: int
    moved_out: int
    fetched: int
    spilled: int
    ahead: int  #: of those moved in, before they were asked for
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
        sources = [HERE / f"{name}.c" for name in OWN] + [SHIM / f"{name}.c" for name in SHIMS]
        names = HERE.parent / "softcuda" / "names.txt"
        subprocess.run(
            [sys.executable, str(SHIM / "generate.py"), str(SHIM / "hooks.def"), folder, str(names)],
            check=True,
        )
        build = ["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        # Waiting for another thread is letting that one's time pass.
        waits = [f"-Dpthread_cond_{wait}=replay_cond_{wait}" for wait in ("wait", "timedwait")]
        build += [*waits, f"-I{SHIM}", f"-I{folder}", "-Wl,-Bsymbolic"]
        subprocess.run([*build, "-o", str(out), *map(str, sources)], check=True)
        return ffi, ffi.dlopen(str(out))


class _Trace:
    """The steps as the C code takes them; keeps the memory alive."""

    def __init__(self, steps: Steps, machine: Machine) -> None:
        self.ffi, self.lib = _library()
        count = len(steps.first)
        self.steps = self.ffi.new("struct step[]", max(count, 1))
        for i in range(count):
            s = self.steps[i]
            s.first, s.count, s.tag = steps.first[i], steps.count[i], steps.tag[i]
            setattr(s, "pass", steps.passes[i])
            s.compute, s.frees, s.waits = steps.compute[i], steps.frees[i], steps.waits[i]
            s.host = machine.host * steps.host[i] + min(steps.beside[i], machine.launch)
            if not machine.host:
                s.host = machine.launch
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
    trace = _Trace(steps, machine)
    ffi, lib = trace.ffi, trace.lib
    settings = ffi.new("struct machine *")
    settings.slots = _slots(steps, machine)
    settings.ram = machine.ram // steps.chunk
    settings.chunk = steps.chunk
    fields: Mapping[str, float] = vars(machine)
    for name in set(fields) - {"vram", "ram", "host", "launch"}:
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
            p.least,
            p.compute,
            p.stalled,
            getattr(p, "in"),
            p.out,
            p.fetched,
            p.spilled,
            p.ahead,
            p.in_bound,
            p.out_bound,
            p.fetched_bound,
        )
        for name, p in zip(steps.names, passes, strict=True)
    ]


def cost(steps: Steps, machine: Machine) -> tuple[float, float]:
    """Nanoseconds of CPU that following the trace takes, a step and a use."""
    trace = _Trace(steps, machine)
    a, b = trace.ffi.new("double *"), trace.ffi.new("double *")
    trace.lib.replay_cost(trace.trace, _slots(steps, machine), a, b)
    return a[0], b[0]
