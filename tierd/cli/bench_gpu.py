# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost bench gpu: a model larger than its VRAM on this machine's GPU, with and without GreenBoost.

One program that knows nothing of GreenBoost (benchgpu/llama.py) runs once in each mode, each time as a
process of its own: with all VRAM, which is the reference for speed and for the bits of the result, then
with less, under `greenboost run` and with what else can do it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from .. import __version__, config
from ..model import MAX_CHUNK, MIN_CHUNK, SizeError, format_size, parse_size
from .bench_gpu_disk import directory_of, measure_reads
from .bench_gpu_modes import Bench, run_mode
from .bench_gpu_plan import MODES, Limits, Shape, choose_limits, choose_shape
from .bench_gpu_plot import draw_modes
from .bench_gpu_program import PROGRAMS, run_program
from .bench_gpu_report import (
    ON_DISK,
    OURS,
    PHASES,
    Ceilings,
    Result,
    as_json,
    ceiling_lines,
    ideal_seconds,
    launch_line,
    mode_line,
    model_json,
    model_line,
    table_head,
)
from .bench_plot import check_plot
from .check_machine import available_ram
from .errors import CommandError, UsageError
from .parsers import Commands, add_command
from .signals import HeldSignals, Interrupted, hold_signals

__all__ = ["add_to"]

_LOOKING = 180.0
"""Seconds for machine.py: it imports PyTorch, and pins some GB."""


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "gpu",
        _gpu,
        help="run a model that is larger than its VRAM, with and without GreenBoost, and compare",
        example="greenboost bench gpu --spill /mnt/nvme/bench:64GiB --json gpu.json --plot gpu.svg",
    )
    parser.add_argument(
        "--modes",
        metavar="MODE[,MODE...]",
        type=_modes,
        help=f"which to run: {', '.join(MODES)} (default all that can; the comparison of bits needs vram)",
    )
    parser.add_argument("--quick", action="store_true", help="a small model, so that a mode takes seconds")
    parser.add_argument("--layers", metavar="N", type=_count, help="layers of the model (default what fits)")
    parser.add_argument(
        "--hidden", metavar="N", type=_count, help="its width: 8192, 4096, 2048 or 1024 (default what fits)"
    )
    parser.add_argument(
        "--vram", metavar="SIZE", help="VRAM for the model, also 40%% of its weights (default 40%%)"
    )
    parser.add_argument(
        "--ram",
        metavar="SIZE",
        help="RAM for the model in modes with NVMe or disk, also 30%% of its weights "
        "(default half of what VRAM leaves)",
    )
    parser.add_argument("--chunk", metavar="SIZE", type=_chunk, default=config.DEFAULT_CHUNK)
    parser.add_argument(
        "--spill",
        metavar="PATH[:SIZE]",
        help="a file that is made and removed again, a directory for one, or a block device; without it "
        "the modes with NVMe and disk are left out",
    )
    parser.add_argument("--prompt", metavar="N", type=_count, help="tokens of the prefill (default 2048)")
    parser.add_argument("--tokens", metavar="N", type=_count, help="tokens to decode (default 32)")
    parser.add_argument("--repeat", metavar="N", type=_count, help="prefills to measure (default 5)")
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of weights and prompt")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_count,
        default=300,
        help="for one mode; one that is slow measures fewer passes (default 300)",
    )
    parser.add_argument("--python", metavar="PATH", help="the Python that has PyTorch (default python3)")
    parser.add_argument(
        "--json", metavar="FILE", help="write all figures to FILE after each mode; - prints them in the end"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures into FILE, .svg or .png")


def _modes(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in MODES:
            raise argparse.ArgumentTypeError(f"{name!r} is no mode; there are {', '.join(MODES)}")
    if not names:
        raise argparse.ArgumentTypeError("no mode is given")
    return [mode for mode in MODES if mode in names]


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _chunk(text: str) -> int:
    try:
        size = parse_size(text)
    except SizeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not MIN_CHUNK <= size <= MAX_CHUNK or size & (size - 1):
        raise argparse.ArgumentTypeError(f"{text}: a chunk is a power of two from 2MiB to 64MiB")
    return size


@dataclass(frozen=True, slots=True)
class _Found:
    """All there is to report."""

    bench: Bench
    machine: dict[str, Any]
    ceilings: Ceilings
    results: list[Result]

    def ideals(self, result: Result) -> dict[str, float | None]:
        reference = next((one for one in self.results if one.mode == "vram"), None)
        return {
            phase: ideal_seconds(
                result,
                phase,
                shape=self.bench.shape,
                limits=self.bench.limits,
                ceilings=self.ceilings,
                reference=reference,
            )
            for phase in PHASES
        }

    def as_json(self) -> dict[str, object]:
        bench, disk = self.bench, self.ceilings.disk
        return {
            "greenboost": __version__,
            "machine": self.machine,
            "model": model_json(bench.shape),
            "prompt": bench.prompt,
            "tokens": bench.tokens,
            "seed": bench.seed,
            "chunk_bytes": bench.chunk,
            "limits": {f"{name}_bytes": size for name, size in asdict(bench.limits).items()},
            "ceilings": {
                "h2d_bytes_per_second": self.ceilings.h2d,
                "d2h_bytes_per_second": self.ceilings.d2h,
                "both_bytes_per_second": self.ceilings.both,
                "disk": asdict(disk) if disk is not None else None,
            },
            "modes": [as_json(one, self.ideals(one)) for one in self.results],
        }


def _gpu(options: argparse.Namespace) -> int:
    modes = options.modes or list(MODES)
    if options.plot is not None:
        check_plot(options.plot)
    if options.json not in (None, "-"):
        _check_json(Path(options.json))
    python = _python(options.python)
    # With --json - the standard output is for the one object.
    out = sys.stderr if options.json == "-" else sys.stdout
    with hold_signals() as held, tempfile.TemporaryDirectory(prefix="greenboost-bench-") as work:
        try:
            found = _prepare(options, modes, python, Path(work), held, out)
            for mode in modes:
                _measure(found, mode, options, held, out)
        except Interrupted as interrupted:
            return 128 + interrupted.number
    return _finish(found, options, out)


def _measure(found: _Found, mode: str, options: argparse.Namespace, held: HeldSignals, out: TextIO) -> None:
    result = run_mode(found.bench, mode, held)
    found.results.append(result)
    print(mode_line(result, found.ideals(result)), file=out, flush=True)
    if result.uncapped:
        print(f"{'':16} RAM was NOT capped: {result.uncapped}", file=out, flush=True)
    if options.json not in (None, "-"):
        _write(Path(options.json), found)


def _finish(found: _Found, options: argparse.Namespace, out: TextIO) -> int:
    if line := launch_line(found.results):
        print(f"\n{line}", file=out)
    if options.json == "-":
        print(json.dumps(found.as_json(), indent=2))
    if options.plot is not None:
        ideals = [found.ideals(one) for one in found.results]
        draw_modes(options.plot, found.results, ideals, title=_title(found))
    bad = [one for one in found.results if one.empty]
    # What others compute is not ours to judge.
    wrong = [one for one in found.results if one.same is False and one.mode in OURS]
    for one in wrong:
        print(f"greenboost: {one.mode}: the results are not those of the reference", file=sys.stderr)
    return 1 if bad or wrong else 0


def _title(found: _Found) -> str:
    limit = format_size(found.bench.limits.vram)
    return f"{found.machine['gpu']['name']}: {model_line(found.bench.shape)}, {limit} of VRAM"


def _prepare(
    options: argparse.Namespace, modes: Sequence[str], python: str, work: Path, held: HeldSignals, out: TextIO
) -> _Found:
    """Look at the machine and choose what to run. Raises UsageError, CommandError and Interrupted."""
    machine = _machine(python, held)
    prompt = options.prompt or (512 if options.quick else 2048)
    tokens = options.tokens or (8 if options.quick else 32)
    shape = choose_shape(
        free_vram=machine["gpu"]["free_bytes"],
        available_ram=available_ram(),
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
    spill, spill_size = _spill(options.spill, limits, work)
    bench = Bench(
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
    disk = None
    if spill is not None and not ON_DISK.isdisjoint(modes):
        with held.let_in():
            disk = measure_reads(spill, size=spill_size or limits.spill, block=options.chunk)
    copies = machine["copies"]
    if not copies:
        raise CommandError("too little VRAM is free to measure copies; end what else uses the GPU")
    ceilings = Ceilings(
        h2d=max(one["h2d_bytes_per_second"] for one in copies),
        d2h=max(one["d2h_bytes_per_second"] for one in copies),
        both=max(one["both_bytes_per_second"] for one in copies),
        disk=disk,
    )
    head = [
        f"{machine['gpu']['name']}, PyTorch {machine['packages']['torch']}, "
        f"transformers {machine['packages']['transformers']}",
        f"{model_line(shape)}; prefill of {prompt} tokens, decode of {tokens} at batch 1",
        *ceiling_lines(shape, limits, ceilings),
        "",
        table_head(),
    ]
    print("\n".join(head), file=out, flush=True)
    return _Found(bench, machine, ceilings, [])


def _machine(python: str, held: HeldSignals) -> dict[str, Any]:
    command = [python, str(PROGRAMS / "machine.py")]
    try:
        said = run_program(command, environ=os.environ, held=held, seconds=_LOOKING)
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


def _python(named: str | None) -> str:
    """The Python that has PyTorch. Raises UsageError."""
    if named is None:
        return shutil.which("python3") or sys.executable
    found = shutil.which(named)
    if found is None:
        raise UsageError(f"--python: there is no program {named}")
    return found


def _size(flag: str, text: str | None, shape: Shape) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text, whole=shape.weights_bytes)
    except SizeError as error:
        raise UsageError(f"{flag}: {error}") from None


def _spill(text: str | None, limits: Limits, work: Path) -> tuple[Path | None, int | None]:
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
    if free < size:
        raise UsageError(
            f"--spill: {directory} has {format_size(free)} free, {format_size(size)} are needed; "
            "free some, name another path, or give fewer --layers"
        )
    if path.is_dir():
        path /= f"{work.name}.spill"
    return path, size


def _check_json(file: Path) -> None:
    target = file if file.exists() else file.absolute().parent
    if file.is_dir() or not os.access(target, os.W_OK):
        raise UsageError(f"--json: {file} cannot be written; give a file where you may write")


def _write(file: Path, found: _Found) -> None:
    """Replace the file whole, so that a run that is killed leaves what there was."""
    with ExitStack() as undo:
        fd, name = tempfile.mkstemp(prefix=".greenboost-", dir=file.absolute().parent)
        undo.callback(Path(name).unlink, missing_ok=True)
        with open(fd, "w") as new:
            json.dump(found.as_json(), new, indent=2)
            new.write("\n")
        os.chmod(name, 0o644)
        os.replace(name, file)
