# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost bench: what this machine gives, measured; one module a benchmark."""

from __future__ import annotations

from . import bench_gpu, bench_spill
from .parsers import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="measure what this machine gives")
    below = parser.add_subparsers(title="benchmarks", metavar="BENCH", required=True)
    for bench in (bench_spill, bench_gpu):
        bench.add_to(below)
