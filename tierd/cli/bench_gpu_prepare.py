# SPDX-License-Identifier: GPL-2.0-or-later
"""Before greenboost bench gpu measures: what the machine has, what to run on it, and its ceilings."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .. import config, memory
from ..model import SizeError, format_size, parse_size
from .bench_gpu_disk import Disk, bytes_to_read, directory_of, open_disk
from .bench_gpu_modes import Bench
from .bench_gpu_plan import Limits, Shape, choose_limits, choose_shape
from .bench_gpu_program import PROGRAMS, Said, run_program
from .bench_gpu_report import ON_DISK, Ceilings
from .errors import CommandError, UsageError
from .signals import HeldSignals

__all__ = ["ceilings_of", "look_at_machine", "measure_disk", "prepare_bench", "python_with_torch"]

_LOOKING = 180.0
"""Seconds for machine.py: it imports PyTorch, and pins some GB."""


def look_at_machine(python: str, held: HeldSignals) -> dict[str, Any]:
    """What machine.py found. Raises UsageError, CommandError and Interrupted."""
    command = [python, str(PROGRAMS / "machine.py")]
    said = Said()
    try:
        run_program(command, said, environ=os.environ, held=held, seconds=_LOOKING)
    except OSError as error:
        raise UsageError(f"--python: {python} cannot be run: {(error.strerror or '').lower()}") from None
    if said.cut:
        raise CommandError(f"{' '.join(command)} took more than {_LOOKING:.0f} s; run it by hand")
    if said.status or not said.events:
        raise CommandError(f"{' '.join(command)} failed: {said.complaint()}; run it by hand")
    machine = said.events[-1]
    if "error" in machine:
        raise CommandError(str(machine["error"]))
    return machine


def python_with_torch(named: str | None) -> str:
    """The Python that has PyTorch. Raises UsageError."""
    if named is None:
        return shutil.which("python3") or sys.executable
    found = shutil.which(named)
    if found is None:
        raise UsageError(f"--python: there is no program {named}")
    return found


def prepare_bench(
    options: argparse.Namespace, modes: Sequence[str], python: str, machine: Mapping[str, Any], work: Path
) -> Bench:
    """Choose what to run. Raises UsageError and CommandError."""
    prompt = options.prompt or (512 if options.quick else 2048)
    tokens = options.tokens or (8 if options.quick else 32)
    shape = choose_shape(
        free_vram=machine["gpu"]["free_bytes"],
        available_ram=memory.available(),
        prompt=prompt,
        tokens=tokens,
        layers=options.layers,
        hidden=options.hidden,
        quick=options.quick,
    )
    limits = choose_limits(
        shape,
        prompt=prompt,
        tokens=tokens,
        chunk=options.chunk,
        vram=_size("--vram", options.vram, shape),
        ram=_size("--ram", options.ram, shape),
    )
    spill, spill_size = _spill(options.spill, modes, limits, options.chunk, work)
    return Bench(
        python=python,
        shape=shape,
        limits=limits,
        chunk=options.chunk,
        spill=spill,
        spill_size=spill_size,
        prompt=prompt,
        tokens=tokens,
        repeat=options.repeat or (2 if options.quick else 5),
        seed=options.seed,
        seconds=float(options.timeout),
        work=work,
        gpu_uuid=machine["gpu"]["uuid"],
        packages=machine["packages"],
    )


def measure_disk(bench: Bench, modes: Sequence[str], held: HeldSignals, undo: ExitStack) -> Disk | None:
    """Open what is read of the spill path's disk, if a mode uses it. Raises CommandError and Interrupted."""
    if bench.spill is None or ON_DISK.isdisjoint(modes):
        return None
    size = bench.spill_size or bench.limits.spill
    with held.let_in():
        return undo.enter_context(open_disk(bench.spill, size=size, block=bench.chunk))


def ceilings_of(machine: Mapping[str, Any], disk: Disk | None) -> Ceilings:
    """The fastest that was measured. Raises CommandError."""
    copies = machine["copies"]
    if not copies:
        raise CommandError("too little VRAM is free to measure copies; end what else uses the GPU")
    return Ceilings(
        h2d=max(one["h2d_bytes_per_second"] for one in copies),
        d2h=max(one["d2h_bytes_per_second"] for one in copies),
        both=max(one["both_bytes_per_second"] for one in copies),
        disk=disk.speed if disk is not None else None,
    )


def _size(flag: str, text: str | None, shape: Shape) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text, whole=shape.weights_bytes)
    except SizeError as error:
        raise UsageError(f"{flag}: {error}") from None


def _spill(
    text: str | None, modes: Sequence[str], limits: Limits, chunk: int, work: Path
) -> tuple[Path | None, int | None]:
    """The spill path and its size; no size for a block device. Raises UsageError."""
    if text is None:
        return None, None
    try:
        spec = config.parse_spill(text, "--spill")
    except config.ConfigError as error:
        raise UsageError(str(error)) from None
    path, size = spec.path.absolute(), spec.size
    directory = directory_of(path)
    if directory is None:
        return path, size
    if not directory.is_dir():
        raise UsageError(f"--spill: {directory} does not exist; create it")
    if size is None:
        size = limits.spill
    if size < limits.spill:
        raise UsageError(
            f"--spill: {format_size(size)} is too little; this model with this --ram needs "
            f"{format_size(limits.spill)}"
        )
    free = shutil.disk_usage(directory).free
    # What is read beside these modes stays as well.
    needed = size if ON_DISK.isdisjoint(modes) else size + bytes_to_read(size, chunk)
    if free < needed:
        raise UsageError(
            f"--spill: {directory} has {format_size(free)} free, {format_size(needed)} are needed; "
            "free some, name another path, or give fewer --layers"
        )
    if path.is_dir():
        path /= f"{work.name}.spill"
    return path, size
