# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m replay``: what the predictor would do with a trace, and the least that could be done."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tierd.model import SizeError, parse_size

from .core import Machine, Pass, cost, replay
from .generate import GENERATORS, generate
from .model import Steps, TraceError, read, steps

__all__ = ["main", "summary"]

_DEFAULTS = Machine(0, 0)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except SizeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m replay",
        description="Runs a trace against the shim's predictor. Prints what each pass moves and takes, and "
        "the least that it could.",
        epilog="example: PYTHONPATH=tools python -m replay llama.jsonl.xz --vram 11.5GB --ram 64GiB",
    )
    parser.add_argument(
        "trace", help=f"a recorded trace (.jsonl, .jsonl.xz), or one made by rule: {', '.join(GENERATORS)}"
    )
    parser.add_argument("--vram", type=_size, required=True, metavar="SIZE", help="VRAM for allocations")
    parser.add_argument("--ram", type=_size, default=1 << 40, metavar="SIZE", help="RAM below (enough)")
    parser.add_argument("--chunk", type=_size, default=16 << 20, metavar="SIZE", help="of a chunk (16 MiB)")
    parser.add_argument("--bus", type=_size, default=None, metavar="SIZE", help="bytes a second, each way")
    parser.add_argument("--disk", type=_size, default=None, metavar="SIZE", help="bytes a second, each way")
    parser.add_argument(
        "--host", type=float, default=1.0, metavar="TIMES", help="the program's recorded time (1)"
    )
    parser.add_argument(
        "--launch",
        type=float,
        metavar="US",
        help="microseconds of the program a launch, whatever was recorded",
    )
    parser.add_argument("--move", type=float, metavar="US", help="of the pager a chunk moved (135)")
    parser.add_argument(
        "--unknown", choices=["changes", "reads"], default="changes", help="what a launch does"
    )
    parser.add_argument("--no-look-ahead", action="store_true", help="bring in only what is waited for")
    parser.add_argument("--passes", action="store_true", help="a line a pass, not a line a kind of pass")
    parser.add_argument("--json", action="store_true", help="all figures as one object")
    return parser.parse_args(argv)


def _machine(options: argparse.Namespace) -> Machine:
    bus, disk = options.bus, options.disk
    return Machine(
        vram=options.vram,
        ram=options.ram,
        up=bus or _DEFAULTS.up,
        down=bus or _DEFAULTS.down,
        disk_read=disk or _DEFAULTS.disk_read,
        disk_write=disk or _DEFAULTS.disk_write,
        host=options.host if options.launch is None else 0.0,
        launch=_DEFAULTS.launch if options.launch is None else options.launch / 1e6,
        move=_DEFAULTS.move if options.move is None else options.move / 1e6,
        look_ahead=not options.no_look_ahead,
    )


def _figures(name: str, passes: Sequence[Pass], chunk: int, machine: Machine) -> dict[str, Any]:
    """Of passes that belong together, a pass: bytes, seconds, bounds and ratios."""
    n = len(passes)

    def mean(field: str) -> float:
        return float(sum(getattr(p, field) for p in passes)) / n

    moved = chunk * (mean("moved_in") + mean("moved_out"))
    bound = chunk * (mean("in_bound") + mean("out_bound"))
    least = sum(p.least for p in passes)
    return {
        "pass": name,
        "passes": n,
        "in_bytes": chunk * mean("moved_in"),
        "out_bytes": chunk * mean("moved_out"),
        "bound_in_bytes": chunk * mean("in_bound"),
        "bound_out_bytes": chunk * mean("out_bound"),
        "bytes_ratio": moved / bound if bound else None,
        "nvme_read_bytes": chunk * mean("fetched"),
        "nvme_written_bytes": chunk * mean("spilled"),
        "bound_nvme_read_bytes": chunk * mean("fetched_bound"),
        "seconds": mean("seconds"),
        "compute_seconds": mean("compute"),
        "bound_seconds": least / n,
        "seconds_ratio": mean("seconds") * n / least if least else None,
        "ahead_bytes": chunk * mean("ahead"),
        "stalled_seconds": mean("stalled"),
        "bus_idle_seconds": mean("seconds") - chunk * mean("moved_in") / machine.up,
    }


def summary(trace: Steps, machine: Machine, *, each: bool = False) -> list[dict[str, Any]]:
    """Figures a pass, or a kind of pass: those of one name up to its number, without the first of a kind."""
    passes = replay(trace, machine)
    if each:
        return [_figures(p.name, [p], trace.chunk, machine) for p in passes]
    kinds: dict[str, list[Pass]] = {}
    for p in passes:
        kinds.setdefault(p.name.split(" ")[0], []).append(p)
    return [
        _figures(kind, some[1:] if len(some) > 1 else some, trace.chunk, machine)
        for kind, some in kinds.items()
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(rows: Iterable[dict[str, Any]]) -> None:
    print(
        f"{'pass':14} {'n':>3} {'in GB':>8} {'least':>8} {'ahead':>8} {'out GB':>8} {'least':>8} {'ratio':>6}"
        f" {'disk GB':>8} {'least':>8} {'seconds':>9} {'compute':>9} {'least':>9} {'ratio':>6} {'idle':>9}"
    )
    for r in rows:
        size = {key: f"{value / 1e9:8.3f}" for key, value in r.items() if key.endswith("_bytes")}
        time = {key: f"{value:9.4f}" for key, value in r.items() if key.endswith("seconds")}
        print(
            f"{r['pass'][:14]:14} {r['passes']:3} {size['in_bytes']} {size['bound_in_bytes']}"
            f" {size['ahead_bytes']} {size['out_bytes']} {size['bound_out_bytes']}"
            f" {_ratio(r['bytes_ratio']):>6} {size['nvme_read_bytes']} {size['bound_nvme_read_bytes']}"
            f" {time['seconds']} {time['compute_seconds']} {time['bound_seconds']}"
            f" {_ratio(r['seconds_ratio']):>6} {time['bus_idle_seconds']}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    try:
        lines = generate(options.trace) if options.trace in GENERATORS else read(Path(options.trace))
        trace = steps(lines, options.chunk, unknown=options.unknown)
        machine = _machine(options)
        rows = summary(trace, machine, each=options.passes)
    except (OSError, TraceError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 1
    step_ns, use_ns = cost(trace, machine)
    if options.json:
        print(
            json.dumps(
                {
                    "trace": options.trace,
                    "machine": asdict(machine),
                    "chunk_bytes": trace.chunk,
                    "steps": len(trace.first),
                    "uses": len(trace.chunks),
                    "untimed_launches": trace.untimed,
                    "follow_ns_a_step": step_ns,
                    "follow_ns_a_use": use_ns,
                    "passes": rows,
                },
                indent=2,
            )
        )
        return 0
    _table(rows)
    print(
        f"{len(trace.first)} steps, {len(trace.chunks)} uses of {trace.chunk_count} chunks;"
        f" following them took {step_ns:.0f} ns a step, {use_ns:.0f} ns a use"
        + (f"; {trace.untimed} launches have no time" if trace.untimed else "")
    )
    return 0
