# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of greenboost bench spill as a picture, and what all our pictures have in common.

Needs matplotlib, an optional extra.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench_pairs import DIRECTIONS, Throughput
from .errors import CommandError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GREY", "GRID", "INK", "OURS", "check_plot", "draw", "picture"]

_KINDS = (".svg", ".png")
OURS, GREY, INK, GRID = "#0f6e84", "#c3cad3", "#33383f", "#e6e8ec"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
}
_NOTE = (
    "Bars: median run. Lines: slowest to fastest run. Percent: ours in terms of fio's, median of the pairs."
)


def check_plot(file: Path) -> None:
    """Raise UsageError or CommandError if draw() could not: better now than after the measuring."""
    if file.suffix.lower() not in _KINDS:
        raise UsageError(f"--plot: {file} is neither {' nor '.join(_KINDS)}; give it such a name")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise UsageError(f"--plot: {file} cannot be written; name a directory that you may write to")
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--plot needs the Python package matplotlib: 'pip install greenboost[bench]'")


def draw(file: Path, found: Sequence[Throughput], *, title: str) -> None:
    """A panel for each direction, with the chunk sizes in it. Raises CommandError."""
    top = max(max(pair.rate, pair.fio_rate) for one in found for pair in one.pairs) / 1e9
    with picture(file, len(DIRECTIONS), title=title, note=_NOTE, sharey=True) as (figure, panels):
        for panel, direction in zip(panels, DIRECTIONS, strict=True):
            _draw_direction(panel, [one for one in found if one.direction == direction], top)
            panel.set_title(direction)
        panels[0].set_ylabel("GB/s")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False)


@contextmanager
def picture(
    file: Path, panels: int, *, title: str, note: str, sharey: bool = False
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure of so many panels side by side, which is written into `file` in the end.

    Raises CommandError when it cannot be.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(1, panels, figsize=(11, 4), sharey=sharey, squeeze=False, dpi=150)
        try:
            yield figure, axes[0]
            figure.suptitle(title, x=0.012, ha="left", fontweight="bold", fontsize=10)
            figure.text(0.012, 0.015, note, fontsize=7)
            figure.tight_layout(rect=(0, 0.04, 1, 0.97))
            figure.savefig(file)
        except OSError as error:
            raise CommandError(f"--plot: {file} cannot be written: {error.strerror}") from None
        finally:
            pyplot.close(figure)


def _draw_direction(panel: Axes, found: Sequence[Throughput], top: float) -> None:
    for at, one in enumerate(found):
        highest = 0.0
        sides = (
            (at - 0.2, OURS, "GreenBoost", [pair.rate / 1e9 for pair in one.pairs]),
            (at + 0.2, GREY, "fio", [pair.fio_rate / 1e9 for pair in one.pairs]),
        )
        for x, colour, label, rates in sides:
            panel.bar(x, statistics.median(rates), 0.36, color=colour, label=None if at else label)
            panel.vlines(x, min(rates), max(rates), color=INK, linewidth=0.9, alpha=0.7)
            highest = max(highest, *rates)
        ratio = one.median(lambda pair: pair.ratio)
        panel.text(at, highest + top * 0.02, f"{ratio:.0%}", ha="center", fontweight="bold")
    panel.set_xticks(range(len(found)), [str(one.chunk >> 20) for one in found])
    panel.set_xlabel("chunk, MiB")
    panel.set_ylim(0, top * 1.1)
    panel.grid(axis="y", color=GRID, linewidth=0.8)
    panel.tick_params(length=0)
