# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of greenboost bench gpu: what a mode came to, against what was possible; table and JSON.

*Ideal* is the least that a pass can take: as long as the reference's, or as long as it takes to copy
once to VRAM what VRAM does not hold, or to read once from NVMe or disk what RAM does not hold either,
whichever is longest, at the speeds measured in the same run. Reading ahead over the end of a pass is
part of that; writing anything back is not. *Now* is the same with the speeds of copies and reads that were
measured right before and after that phase of that mode, and in its pauses: bus and disk are shared with
others, and theirs is not our doing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..model import format_size
from .bench_gpu_disk import DiskSpeed
from .bench_gpu_plan import Limits, Shape

__all__ = [
    "AGAIN",
    "ON_DISK",
    "OURS",
    "PHASES",
    "UNLIMITED",
    "Ceilings",
    "Ideal",
    "Result",
    "as_json",
    "ceiling_lines",
    "disk_line",
    "ideal_pass",
    "launch_line",
    "mode_line",
    "model_json",
    "model_line",
    "table_head",
]

AGAIN = "vram again"
"""The reference once more, to tell whether another result is ours or the libraries'."""
UNLIMITED = frozenset({"vram", "shim", AGAIN})
"""Modes that may use all VRAM."""
OURS = frozenset({"shim", "paged", "paged+nvme", "mapped"})
"""Modes under `greenboost run`."""
ON_DISK = frozenset({"paged+nvme", "accelerate+disk"})
"""Modes that use NVMe or disk, with RAM capped."""
PHASES = ("prefill", "decode")

_COLUMNS = (
    # what, width
    ("mode", -16),
    ("load", 7),
    ("prefill", 9),
    ("of", 7),
    ("of", 7),
    ("decode", 9),
    ("of", 7),
    ("of", 7),
    ("to", 8),
    ("from", 8),
    ("NVMe", 8),
    ("NVMe", 8),
    ("VRAM", 7),
    ("same", 5),
)
_SECOND = (
    "", "s", "s", "ideal", "now", "tok/s", "ideal", "now", "VRAM", "VRAM", "read", "written", "GB", "bits",
)  # fmt: skip
_BEFORE_MOVED = _SECOND.index("VRAM")
"""Columns to the left of what was moved."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine gives at best, bytes a second."""

    h2d: float
    d2h: float
    both: float  #: each way, when both are under way
    disk: DiskSpeed | None


@dataclass(slots=True)
class Result:
    """What one mode came to; seconds, bytes. None and empty: not measured."""

    mode: str
    status: str = "ok"  #: or "cut" (its time was over), "failed", "left out"
    reason: str = ""  #: why it is not ok
    command: Sequence[str] = ()
    seconds: float = 0.0  #: the whole run
    load: float | None = None
    plan: float | None = None  #: FlexTensor's
    launch: float | None = None  #: one empty launch, as PyTorch makes it
    passes: Mapping[str, Sequence[float]] = field(default_factory=dict)  #: by phase, until the result is here
    bus: dict[str, list[float]] = field(default_factory=dict)  #: bytes a second of copies around each phase
    disk: dict[str, list[float]] = field(default_factory=dict)  #: and of reads, in a mode that reads
    unmeasured: str = ""  #: why not all of these were made
    gpu_passes: Mapping[str, Sequence[float]] = field(default_factory=dict)  #: between events on the GPU
    moved: dict[str, dict[str, int]] = field(default_factory=dict)  #: by phase, over all its passes
    ended: frozenset[str] = frozenset()  #: phases of which all that was moved is of passes that were timed
    vram: int | None = None  #: the most in use on the GPU
    ram: int | None = None  #: the most in use by the tree of processes, page cache included, where capped
    ram_cap: int | None = None
    uncapped: str = ""  #: why RAM could not be capped
    same: bool | None = None  #: all logits that were compared, bit by bit, as in the reference
    difference: float | None = None  #: the largest between logits that were compared
    greenboost: Mapping[str, Any] | None = None  #: what `greenboost run --json` wrote

    @property
    def empty(self) -> bool:
        """Whether it was to be measured and was not."""
        return self.status == "failed" or (self.status == "cut" and not any(self.passes.values()))

    def pass_seconds(self, phase: str) -> float | None:
        """The median pass."""
        return _median(self.passes.get(phase))

    def pass_bytes(self, phase: str, counter: str) -> float | None:
        """Moved in a pass, on average."""
        took, moved = self.passes.get(phase), self.moved.get(phase)
        return moved[counter] / len(took) if took and moved is not None else None

    def disk_rate(self, phase: str) -> float | None:
        """Bytes a second that were read of the spill file, over all passes of a phase that was not cut."""
        return self._a_second(phase, "spill_read_bytes")

    def disk_busy(self, phase: str) -> float | None:
        """For what share of those passes the daemon waited for such reads."""
        reading = self._a_second(phase, "spill_reading_ns")
        return None if reading is None else reading / 1e9

    def _a_second(self, phase: str, counter: str) -> float | None:
        took, moved = self.passes.get(phase), self.moved.get(phase)
        return moved[counter] / sum(took) if took and moved is not None and phase in self.ended else None

    def disk_share(self, phase: str) -> float | None:
        """Of what was read beside them, in the mean as well: both have a disk's bad moments in it."""
        beside = self.disk.get(phase)
        return _ratio(self.disk_rate(phase), statistics.mean(beside)) if beside else None


@dataclass(frozen=True, slots=True)
class Ideal:
    """The least that a pass can take, seconds; None when nothing is known that bounds it."""

    best: float | None  #: at the speeds that the machine gives at best
    now: float | None  #: at those around this phase; None when they were not measured


def ideal_pass(
    result: Result, phase: str, *, shape: Shape, limits: Limits, ceilings: Ceilings, reference: Result | None
) -> Ideal:
    """The least that a pass of this mode can take."""
    least = partial(_least, result, phase, shape, limits, reference)
    best = least(ceilings.h2d, ceilings.disk.best if ceilings.disk is not None else None)
    h2d, disk = _median(result.bus.get(phase)), _median(result.disk.get(phase))
    if h2d is None or (disk is None and result.mode in ON_DISK and ceilings.disk is not None):
        return Ideal(best, None)
    return Ideal(best, least(h2d, disk))


def _least(
    result: Result,
    phase: str,
    shape: Shape,
    limits: Limits,
    reference: Result | None,
    h2d: float,
    disk: float | None,
) -> float | None:
    bounds = []
    if reference is not None and (compute := reference.pass_seconds(phase)) is not None:
        bounds.append(compute)
    if result.mode not in UNLIMITED:
        overflow = shape.overflow(limits.vram)
        bounds.append(overflow / h2d)
        if result.mode in ON_DISK and disk is not None:
            bounds.append(max(overflow - limits.ram_nvme, 0) / disk)
    return max(bounds, default=None)


def table_head() -> str:
    """Two lines, to stand above those of mode_line()."""
    rows = zip(_COLUMNS, _SECOND, strict=True)
    pairs = [(_cell(first, width), _cell(second, width)) for (first, width), second in rows]
    moved = " " * (sum(abs(width) + 1 for _, width in _COLUMNS[:_BEFORE_MOVED]) + 2) + "GB moved a token"
    return "\n".join([moved, *(" ".join(cells).rstrip() for cells in zip(*pairs, strict=True))])


def mode_line(result: Result, ideals: Mapping[str, Ideal]) -> str:
    """One mode; `ideals` by phase."""
    if result.status == "left out" or (result.status != "ok" and not any(result.passes.values())):
        return f"{result.mode:16} {result.status}: {result.reason}"
    prefill, decode = (result.pass_seconds(phase) for phase in PHASES)
    names = ("h2d_bytes", "d2h_bytes", "nvme_read_bytes", "nvme_written_bytes")
    cells = [
        result.mode,
        _number(result.load, "{:.1f}"),
        _number(prefill, "{:.3f}"),
        _share(ideals["prefill"].best, prefill),
        _share(ideals["prefill"].now, prefill),
        _number(decode and 1 / decode, "{:.3f}"),
        _share(ideals["decode"].best, decode),
        _share(ideals["decode"].now, decode),
        *(_gigabytes(result.pass_bytes("decode", name)) for name in names),
        _gigabytes(result.vram),
        {True: "yes", False: "NO", None: "-"}[result.same],
    ]
    line = " ".join(_cell(cell, width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
    return f"{line}  {result.status}: {result.reason}" if result.status != "ok" else line


def ceiling_lines(shape: Shape, limits: Limits, ceilings: Ceilings) -> list[str]:
    """What the shares are shares of."""
    overflow = shape.overflow(limits.vram)
    lines = [
        f"copies between pinned RAM and VRAM: {_rate(ceilings.h2d)} up, {_rate(ceilings.d2h)} down, "
        f"{_rate(ceilings.both)} each way at once",
        f"a pass reads {_size(shape.pass_bytes)}; {_size(limits.vram)} of VRAM leave {_size(overflow)} to "
        f"copy: {overflow / ceilings.h2d:.3f} s",
    ]
    if (disk := ceilings.disk) is not None:
        rest = max(overflow - limits.ram_nvme, 0)
        lines += [
            f"reads of {disk.block >> 20} MiB, {disk.depth} at a time, by {disk.method}: "
            f"{_rate(disk.sequential)} in order, {_rate(disk.random)} in random order",
            f"{_size(limits.ram_nvme)} of RAM leave {_size(rest)} to read: {rest / disk.best:.3f} s",
        ]
    return lines


def launch_line(results: Sequence[Result]) -> str | None:
    """What a launch takes without and with the shim, if both are known."""
    found = {one.mode: one.launch for one in results}
    bare, shim = found.get("vram"), found.get("shim")
    if bare is None or shim is None:
        return None
    return (
        f"a launch by PyTorch: {bare * 1e6:.2f} us bare, {shim * 1e6:.2f} us under the shim "
        f"(for its own cost alone, measure an empty launch in C)"
    )


def disk_line(result: Result) -> str | None:
    """How fast T3 was read, if that and what was to be had of its disk were measured."""
    said = [
        f"for {busy:.1%} of {phase}, {_rate(rate)}, {share:.1%}"
        for phase in PHASES
        if (rate := result.disk_rate(phase)) is not None
        and (busy := result.disk_busy(phase)) is not None
        and (share := result.disk_share(phase)) is not None
    ]
    return f"NVMe read {'; '.join(said)} of what the disk gave beside it" if said else None


def as_json(result: Result, ideals: Mapping[str, Ideal]) -> dict[str, object]:
    """One mode, for --json."""
    phases: dict[str, object] = {}
    for phase in PHASES:
        took, gpu = result.pass_seconds(phase), result.gpu_passes.get(phase)
        ideal = ideals[phase]
        phases[phase] = {
            "pass_seconds": took,
            "gpu_pass_seconds": _median(gpu),
            "passes_seconds": list(result.passes.get(phase, ())),
            "gpu_passes_seconds": list(gpu or ()),
            "ideal_pass_seconds": ideal.best,
            "share_of_ideal": _ratio(ideal.best, took),
            "h2d_bytes_per_second_beside": result.bus.get(phase, []),
            "disk_bytes_per_second_beside": result.disk.get(phase, []),
            "nvme_read_bytes_per_second": result.disk_rate(phase),
            "nvme_read_share_of_beside": result.disk_share(phase),
            "nvme_reading_share": result.disk_busy(phase),
            "share_of_ideal_now": _ratio(ideal.now, took),
            "moved": result.moved.get(phase),
        }
    decode = result.pass_seconds("decode")
    return {
        "mode": result.mode,
        "status": result.status,
        "reason": result.reason,
        "command": list(result.command),
        "seconds": result.seconds,
        "load_seconds": result.load,
        "plan_seconds": result.plan,
        "launch_seconds": result.launch,
        "tokens_per_second": 1 / decode if decode else None,
        **phases,
        "beside_unmeasured_reason": result.unmeasured,
        "load_moved": result.moved.get("load"),
        "peak_vram_bytes": result.vram,
        "peak_ram_bytes": result.ram,
        "ram_cap_bytes": result.ram_cap,
        "ram_uncapped_reason": result.uncapped,
        "same_bits": result.same,
        "max_abs_difference": result.difference,
        "greenboost": result.greenboost,
    }


def model_json(shape: Shape) -> dict[str, int]:
    """The model, for --json."""
    return {
        "layers": shape.layers,
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "vocabulary": shape.vocabulary,
        "weights_bytes": shape.weights_bytes,
        "pass_bytes": shape.pass_bytes,
    }


def model_line(shape: Shape) -> str:
    """The model, for people."""
    return (
        f"Llama, {shape.layers} layers, hidden {shape.hidden}, bf16: {shape.weights_bytes / 1e9:.1f} GB "
        f"({format_size(shape.weights_bytes)})"
    )


def _median(values: Sequence[float] | None) -> float | None:
    return statistics.median(values) if values else None


def _rate(value: float) -> str:
    return f"{value / 1e9:.2f} GB/s"


def _size(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def _cell(text: str, width: int) -> str:
    return f"{text:<{-width}}" if width < 0 else f"{text:>{width}}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _share(ideal: float | None, took: float | None) -> str:
    share = _ratio(ideal, took)
    return "-" if share is None else f"{share:.1%}"


def _ratio(ideal: float | None, took: float | None) -> float | None:
    return ideal / took if ideal is not None and took else None


def _gigabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f}"
