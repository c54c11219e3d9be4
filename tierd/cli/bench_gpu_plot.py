# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of greenboost bench gpu as a picture. Needs matplotlib, an optional extra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import bench_plot
from .bench_gpu_report import OURS, PHASES, Ideal, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_modes"]

_NOTE = (
    "Bars: median pass. Lines: fastest to slowest pass. Marks: the least possible, by ceilings measured in "
    "the same run."
)


def draw_modes(
    file: Path, results: Sequence[Result], ideals: Sequence[Mapping[str, Ideal]], *, title: str
) -> None:
    """A panel for each phase with a bar for each mode, seconds. Raises CommandError."""
    with bench_plot.picture(file, 2, title=title, note=_NOTE) as (_, panels):
        for panel, phase in zip(panels, PHASES, strict=True):
            shown = [
                (one, ideal[phase].best)
                for one, ideal in zip(results, ideals, strict=True)
                if one.passes.get(phase)
            ]
            _draw_phase(panel, phase, shown)


def _draw_phase(panel: Axes, phase: str, shown: Sequence[tuple[Result, float | None]]) -> None:
    for at, (result, ideal) in enumerate(shown):
        took = result.pass_seconds(phase)
        assert took is not None
        colour = bench_plot.OURS if result.mode in OURS else bench_plot.GREY
        panel.barh(at, took, 0.6, color=colour)
        every = result.passes[phase]
        panel.hlines(at, min(every), max(every), color=bench_plot.INK, linewidth=0.9, alpha=0.7)
        if ideal is not None:
            panel.plot([ideal, ideal], [at - 0.38, at + 0.38], color=bench_plot.INK, linewidth=1.4)
        label = f"  {took:.3g} s" + (f", {1 / took:.3g} tok/s" if phase == "decode" else "")
        panel.text(max(every), at, label, va="center", fontsize=8)
    panel.set_yticks(range(len(shown)), [result.mode for result, _ in shown])
    panel.invert_yaxis()
    if shown:
        # A mode may be a hundred times as slow as another; and bars need a left end that means something.
        panel.set_xscale("log")
        times = [time for result, ideal in shown for time in (*result.passes[phase], ideal) if time]
        panel.set_xlim(
            10 ** math.floor(math.log10(min(times))), 10 ** math.ceil(math.log10(max(times)) + 0.4)
        )
        panel.minorticks_off()
    panel.set_xlabel("prefill, s" if phase == "prefill" else "one token, s")
    panel.grid(axis="x", color=bench_plot.GRID, linewidth=0.8)
    panel.tick_params(length=0)
