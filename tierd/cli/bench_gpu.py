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
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from .. import __version__
from ..config import DEFAULT_CHUNK
from ..model import format_size
from .bench_gpu_bus import open_bus
from .bench_gpu_modes import Bench, Beside, run_mode
from .bench_gpu_plan import MODES
from .bench_gpu_plot import draw_modes
from .bench_gpu_prepare import ceilings_of, look_at_machine, measure_disk, prepare_bench, python_with_torch
from .bench_gpu_report import (
    AGAIN,
    OURS,
    PHASES,
    Ceilings,
    Ideal,
    Result,
    as_json,
    ceiling_lines,
    disk_line,
    ideal_pass,
    launch_line,
    mode_line,
    model_json,
    model_line,
    table_head,
)
from .bench_plot import check_plot
from .check_spill import is_tmpfs
from .errors import UsageError
from .parsers import Commands, add_command, as_chunk, as_count
from .signals import HeldSignals, Interrupted, hold_signals

__all__ = ["add_to"]


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
    parser.add_argument(
        "--layers", metavar="N", type=as_count, help="layers of the model (default what fits)"
    )
    parser.add_argument(
        "--hidden", metavar="N", type=as_count, help="its width: 8192, 4096, 2048 or 1024 (default what fits)"
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
    parser.add_argument(
        "--chunk",
        metavar="SIZE",
        type=as_chunk,
        default=DEFAULT_CHUNK,
        help="unit of movement: a power of two, 2MiB to 64MiB (default 16MiB)",
    )
    parser.add_argument(
        "--spill",
        metavar="PATH[:SIZE]",
        help="a file that is made and removed again, a directory for one, or a block device; without it "
        "the modes with NVMe and disk are left out",
    )
    parser.add_argument("--prompt", metavar="N", type=as_count, help="tokens of the prefill (default 2048)")
    parser.add_argument("--tokens", metavar="N", type=as_count, help="tokens to decode (default 32)")
    parser.add_argument("--repeat", metavar="N", type=as_count, help="prefills to measure (default 5)")
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of weights and prompt")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=as_count,
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


@dataclass(frozen=True, slots=True)
class _Found:
    """All there is to report."""

    bench: Bench
    machine: dict[str, Any]
    ceilings: Ceilings
    results: list[Result]

    def head(self) -> list[str]:
        packages, bench = self.machine["packages"], self.bench
        disk = [f"{bench.spill} is RAM (tmpfs): its figures are no disk's"] if self.spills_to_ram() else []
        return [
            f"{self.machine['gpu']['name']}, PyTorch {packages['torch']}, "
            f"transformers {packages['transformers']}",
            f"{model_line(bench.shape)}; a prompt of {bench.prompt} tokens, {bench.tokens} decoded",
            *ceiling_lines(bench.shape, bench.limits, self.ceilings),
            *disk,
            "",
            table_head(),
        ]

    def spills_to_ram(self) -> bool:
        return self.bench.spill is not None and is_tmpfs(self.bench.spill)

    def wrong(self) -> list[Result]:
        """Ours with other results than the reference. What others compute is not ours to judge."""
        return [one for one in self.results if one.same is False and one.mode in OURS]

    def repeats(self) -> bool:
        """Whether the reference, where it was asked again, gave the same results again."""
        return all(one.same is not False for one in self.results if one.mode == AGAIN)

    def ideals(self, result: Result) -> dict[str, Ideal]:
        reference = next((one for one in self.results if one.mode == "vram"), None)
        return {
            phase: ideal_pass(
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
                "disk_is_ram": self.spills_to_ram(),
            },
            "modes": [as_json(one, self.ideals(one)) for one in self.results],
        }


def _gpu(options: argparse.Namespace) -> int:
    modes = options.modes or list(MODES)
    if options.plot is not None:
        check_plot(options.plot)
    if options.json not in (None, "-"):
        _check_json(Path(options.json))
    python = python_with_torch(options.python)
    # With --json - the standard output is for the one object.
    out = sys.stderr if options.json == "-" else sys.stdout
    with hold_signals() as held, tempfile.TemporaryDirectory(prefix="greenboost-bench-") as work:
        try:
            with ExitStack() as undo:
                # The first, so that what of VRAM is free does not count what it takes.
                bus = undo.enter_context(open_bus(held))
                machine = look_at_machine(python, held)
                bench = prepare_bench(options, modes, python, machine, Path(work))
                beside = Beside(bus, measure_disk(bench, modes, held, undo))
                found = _Found(bench, machine, ceilings_of(machine, beside.disk), [])
                print("\n".join(found.head()), file=out, flush=True)
                for mode in modes:
                    _measure(found, mode, options, beside, held, out)
                if found.wrong():
                    _measure(found, AGAIN, options, beside, held, out)
        except Interrupted as interrupted:
            return 128 + interrupted.number
    return _finish(found, options, out)


def _measure(
    found: _Found, mode: str, options: argparse.Namespace, beside: Beside, held: HeldSignals, out: TextIO
) -> None:
    result = Result(mode)
    found.results.append(result)
    try:
        run_mode(found.bench, result, beside, held)
    finally:  # when it is interrupted, too
        print(mode_line(result, found.ideals(result)), file=out, flush=True)
        if line := disk_line(result):
            print(f"{'':16} {line}", file=out, flush=True)
        if result.uncapped:
            print(f"{'':16} RAM was NOT capped: {result.uncapped}", file=out, flush=True)
        if result.unmeasured:
            print(f"{'':16} not all was measured beside it: {result.unmeasured}", file=out, flush=True)
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
    for one in found.wrong():
        print(f"greenboost: {one.mode}: the results are not those of the reference", file=sys.stderr)
    if not found.repeats():
        print(
            f"greenboost: {AGAIN}: nor are its own when it runs again: the libraries compute other sums from "
            "run to run here, so that the bits prove nothing",
            file=sys.stderr,
        )
    return 1 if bad or (found.wrong() and found.repeats()) else 0


def _title(found: _Found) -> str:
    limit = format_size(found.bench.limits.vram)
    return f"{found.machine['gpu']['name']}: {model_line(found.bench.shape)}, {limit} of VRAM"


def _check_json(file: Path) -> None:
    target = file if file.exists() else file.absolute().parent
    if file.is_dir() or not os.access(target, os.W_OK):
        raise UsageError(f"--json: {file} cannot be written; give a file where you may write")


def _write(file: Path, found: _Found) -> None:
    """Replace the file whole, so that a run that is killed leaves what there was."""
    text = json.dumps(found.as_json(), indent=2) + "\n"
    if file.exists() and not file.is_file():  # /dev/stderr, a pipe
        file.write_text(text)
        return
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        new.write_text(text)
        new.replace(file)
    except OSError as error:
        # The figures are in the table as well.
        print(f"greenboost: --json {file}: {(error.strerror or '').lower()}", file=sys.stderr)
    finally:
        new.unlink(missing_ok=True)
