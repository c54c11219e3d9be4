# SPDX-License-Identifier: GPL-2.0-or-later
"""One mode of greenboost bench gpu: the program, with what of the machine it may use, run and read.

Under GreenBoost the daemon is started here and not by `greenboost run`, so that its counters can be
read at the marks between the phases.
"""

from __future__ import annotations

import array
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model import format_size
from .bench_gpu_bus import Bus
from .bench_gpu_cgroup import RamCap, RamCapError
from .bench_gpu_counters import Counters
from .bench_gpu_disk import Disk, directory_of
from .bench_gpu_nvml import VramMeter
from .bench_gpu_plan import Limits, Shape
from .bench_gpu_program import PROGRAMS, Said, run_program
from .bench_gpu_report import ON_DISK, PHASES, UNLIMITED, Result
from .errors import CommandError
from .private import PrivateDaemon, start_daemon
from .signals import HeldSignals, Interrupted

__all__ = ["Bench", "Beside", "run_mode"]

_SPARE_RAM = 1 << 30
"""Bytes of RAM that the daemon gets where nothing is to move."""
_READING = 0.95
"""Share of its time after which the program begins no more passes."""
_KEPT = ("GREENBOOST_SHIM", "GREENBOOST_CUDA_DRIVER")
"""What says where things are; all other settings of ours are the mode's."""
_CLI = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tierd.cli.main import main; sys.exit(main())"
"""Our own command without PYTHONPATH, which the measured program would inherit."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all modes have in common."""

    python: str
    shape: Shape
    limits: Limits
    chunk: int  #: bytes
    spill: Path | None
    spill_size: int | None  #: bytes; None for a block device: all of it
    prompt: int
    tokens: int
    repeat: int
    seed: int
    seconds: float  #: for one mode
    work: Path  #: a directory of ours
    gpu_uuid: str
    packages: Mapping[str, str | None]  #: versions; None: not installed


@dataclass(frozen=True, slots=True)
class Beside:
    """What is asked around each phase, and within one that takes long, how fast it is just then."""

    bus: Bus
    disk: Disk | None  #: None: no mode reads it

    def measure(self, result: Result, phase: str, bench: Bench) -> None:
        if result.mode in UNLIMITED:
            return
        result.bus.setdefault(phase, []).extend(self.bus.rates(bench.shape.overflow(bench.limits.vram)))
        result.unmeasured = result.unmeasured or self.bus.silent
        if result.mode in ON_DISK and self.disk is not None and not self.bus.silent:
            try:
                result.disk.setdefault(phase, []).append(self.disk.rate())
            except (CommandError, OSError) as error:
                result.unmeasured = result.unmeasured or f"the disk: {error}"


def run_mode(bench: Bench, result: Result, beside: Beside, held: HeldSignals) -> None:
    """Run the result's mode to its end, or to that of its time; `beside` measures around its phases.

    Raises Interrupted, when the result has what was measured until then.
    """
    if reason := _missing(bench, result.mode):
        result.status, result.reason = "left out", reason
        return
    try:
        with ExitStack() as undo:
            _run(bench, result, beside, held, undo)
    except Interrupted:
        result.status, result.reason = "cut", "interrupted"
        raise
    except (CommandError, OSError, subprocess.SubprocessError) as error:
        result.status, result.reason = "failed", str(error)


def _missing(bench: Bench, mode: str) -> str:
    """What the mode lacks here; empty if nothing."""
    package = mode.split("+")[0]
    if package in ("accelerate", "flextensor") and bench.packages.get(package) is None:
        return f"{bench.python} has no {package}"
    if mode in ON_DISK and bench.spill is None:
        return "no --spill is given"
    if mode == "accelerate+disk" and bench.spill is not None and directory_of(bench.spill) is None:
        return f"accelerate needs a directory, {bench.spill} is a device"
    return ""


def _greenboost() -> list[str]:
    return [sys.executable, "-c", _CLI, str(Path(__file__).resolve().parents[2])]


def _run(bench: Bench, result: Result, beside: Beside, held: HeldSignals, undo: ExitStack) -> None:
    cap = _cap(bench, result, undo)
    daemon = _daemon(bench, result.mode, cap, held, undo)
    figures = bench.work / f"{result.mode}.json"
    result.command = _command(bench, result.mode, daemon, figures, undo)
    counters = Counters(daemon)
    meter = undo.enter_context(VramMeter(bench.gpu_uuid))
    said = Said()

    def at_mark(mark: str) -> None:
        counters.at_mark(mark, lambda phase: beside.measure(result, phase, bench))

    try:
        run_program(
            result.command,
            said,
            environ=_environ(),
            held=held,
            seconds=bench.seconds,
            at_mark=at_mark,
            look=meter.look,
            enter=cap.enter if cap is not None else lambda: None,
        )
    finally:
        result.vram = meter.most
        result.ram = cap.peak() if cap is not None else None
        result.moved = {
            phase: moved for phase in ("load", *PHASES) if (moved := counters.between(phase)) is not None
        }
        result.ended = frozenset(filter(counters.ended, PHASES))
        _read(bench, result, said)
    if figures.exists():
        result.greenboost = json.loads(figures.read_text())


def _cap(bench: Bench, result: Result, undo: ExitStack) -> RamCap | None:
    if result.mode not in ON_DISK:
        return None
    try:
        cap = undo.enter_context(RamCap(bench.limits.cap()))
    except RamCapError as error:
        result.uncapped = str(error)
        return None
    result.ram_cap = bench.limits.cap()
    return cap


def _daemon(
    bench: Bench, mode: str, cap: RamCap | None, held: HeldSignals, undo: ExitStack
) -> PrivateDaemon | None:
    ram = {
        "shim": _SPARE_RAM,
        "paged": bench.limits.ram,
        "mapped": bench.limits.ram,
        "paged+nvme": bench.limits.ram_nvme,
    }.get(mode)
    if ram is None:
        return None
    flags = [f"--ram={ram}", f"--chunk={bench.chunk}"]
    if mode in ON_DISK:
        flags.append(f"--spill={bench.spill}" + (f":{bench.spill_size}" if bench.spill_size else ""))
    daemon = start_daemon(flags, _environ(), held)
    undo.callback(daemon.stop)
    if cap is not None:
        # It has taken no memory for chunks yet: arenas are made when sessions ask for them.
        cap.enter(daemon.pid)
    return daemon


def _environ() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith("GREENBOOST_")
    }
    # llama.py sets it too, but late if something imports torch at start-up.
    return {**kept, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def _command(
    bench: Bench, mode: str, daemon: PrivateDaemon | None, figures: Path, undo: ExitStack
) -> list[str]:
    shape = bench.shape
    options = {
        "layers": shape.layers,
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
        "heads": shape.heads,
        "kv-heads": shape.kv_heads,
        "vocabulary": shape.vocabulary,
        "prompt": bench.prompt,
        "tokens": bench.tokens,
        "repeat": bench.repeat,
        "seed": bench.seed,
        "seconds": bench.seconds * _READING,
        "logits": _logits(bench, mode),
        **_offload(bench, mode, undo),
    }
    program = [
        bench.python,
        str(PROGRAMS / "llama.py"),
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    if daemon is None:
        return program
    run = [*_greenboost(), "run", f"--socket={daemon.socket}", f"--json={figures}"]
    if mode != "shim":
        run.append(f"--vram={bench.limits.vram}")
    if mode == "mapped":
        run.append("--paging=mapped")
    return [*run, "--", *program]


def _offload(bench: Bench, mode: str, undo: ExitStack) -> dict[str, object]:
    """What the program is told where it is to do without GreenBoost."""
    limits = bench.limits
    if mode == "flextensor":
        return {"offload": "flextensor", "vram": limits.vram}
    if mode == "accelerate":
        return {"offload": "accelerate", "vram": limits.vram, "ram": limits.ram}
    if mode == "accelerate+disk":
        assert bench.spill is not None
        directory = tempfile.TemporaryDirectory(prefix="greenboost-bench-", dir=directory_of(bench.spill))
        disk = undo.enter_context(directory)
        return {"offload": "accelerate", "vram": limits.vram, "ram": limits.ram_nvme, "disk": disk}
    return {}


def _logits(bench: Bench, mode: str) -> Path:
    return bench.work / f"{mode}.logits"


def _read(bench: Bench, result: Result, said: Said) -> None:
    """Have the result say what the program said."""
    result.seconds = said.seconds
    result.load = said.last("loaded").get("seconds")
    result.plan = said.last("planned").get("seconds")
    result.launch = said.last("launch").get("seconds")
    passes = [one for one in said.events if one.get("event") == "pass"]
    result.passes = {phase: [one["seconds"] for one in passes if one["phase"] == phase] for phase in PHASES}
    result.gpu_passes = {
        phase: [one["gpu_seconds"] for one in passes if one["phase"] == phase and one["gpu_seconds"]]
        for phase in PHASES
    }
    if said.cut or (not said.status and not said.last("done")):
        result.status, result.reason = "cut", f"after {bench.seconds:.0f} s; give more --timeout"
    elif said.status == 128 + signal.SIGKILL and result.ram_cap is not None:
        limit = format_size(result.ram_cap)
        result.status, result.reason = "failed", f"killed, as a rule for want of RAM: it may have {limit}"
    elif said.status:
        result.status, result.reason = "failed", said.complaint()
    answer = said.last("answer")
    if answer and result.mode == "vram":
        (bench.work / "answer.json").write_text(json.dumps(answer))
    elif answer and (bench.work / "answer.json").exists():
        reference = json.loads((bench.work / "answer.json").read_text())
        _compare(
            result,
            answer,
            reference,
            _values(_logits(bench, result.mode)),
            _values(_logits(bench, "vram")),
            bench.shape.vocabulary,
        )


def _compare(
    result: Result,
    answer: Mapping[str, Any],
    reference: Mapping[str, Any],
    ours: array.array[float],
    theirs: array.array[float],
    vocabulary: int,
) -> None:
    """Whether the bits are the same: all logits of the prefill, and the last token's of each pass.

    A mode that was slow decoded fewer tokens: those count. After a token that differs, the passes are
    about other text, so the difference is taken up to there.
    """
    count = min(len(ours), len(theirs))
    equal = answer["prefill_sha256"] == reference["prefill_sha256"]
    # Their bytes: two NaN with the same bits are the same.
    result.same = equal and count > 0 and ours[:count].tobytes() == theirs[:count].tobytes()
    pairs = zip(answer["tokens"], reference["tokens"], strict=False)
    differs = next((at for at, (one, other) in enumerate(pairs) if one != other), count // vocabulary)
    upto = min((differs + 1) * vocabulary, count)
    differences = (abs(one - other) for one, other in zip(ours[:upto], theirs[:upto], strict=True))
    result.difference = max(differences, default=None)


def _values(file: Path) -> array.array[float]:
    values = array.array("f")
    values.frombytes(file.read_bytes())
    return values
