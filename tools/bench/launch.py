#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a launch costs more under the shim while nothing overflows.

    python tools/bench/launch.py [--gpu] [--pairs N] [--json]

Runs the same C program (launch.c) bare and under `greenboost run` in turn, N pairs, on the software
device or on a GPU; the difference of the two is the shim's. Nanoseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = Path(__file__).parents[1]
sys.path.insert(0, str(TOOLS))

from bench.pairs import in_turn  # noqa: E402

PTX = """.version 6.3
.target sm_75
.address_size 64
.visible .entry noop() { ret; }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a launch under the shim while all is resident.")
    parser.add_argument("--pairs", type=int, default=9, help="bare and shimmed runs, in turn (default 9)")
    parser.add_argument("--gpu", action="store_true", help="on NVIDIA's driver, not on the software device")
    parser.add_argument("--json", action="store_true", help="one JSON object, nanoseconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "launch"
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, TOOLS / "bench/launch.c", "-ldl"], check=True)
        bare, shimmed = in_turn(
            [program, PTX if options.gpu else "softcuda"],
            ["--vram=256MiB", "--ram=64MiB"],
            pairs=options.pairs,
            gpu=options.gpu,
            vram="512MiB",
        )
    difference = [s - b for s, b in zip(shimmed, bare, strict=True)]
    figures = {
        "bare_ns": statistics.median(bare),
        "shim_ns": statistics.median(shimmed),
        "difference_ns": statistics.median(difference),
        "difference_min_ns": min(difference),
        "difference_max_ns": max(difference),
        "pairs": options.pairs,
    }
    if options.json:
        print(json.dumps(figures))
        return
    print(f"bare {figures['bare_ns']:.0f} ns, under the shim {figures['shim_ns']:.0f} ns a launch")
    print(
        f"difference {figures['difference_ns']:.0f} ns (median of {options.pairs} pairs; "
        f"{figures['difference_min_ns']:.0f} to {figures['difference_max_ns']:.0f})"
    )


if __name__ == "__main__":
    main()
