#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What decoding costs more under the shim while nothing overflows, token by token in turns.

    python tools/bench/turns.py [--tokens N] [--hidden N] [--python PATH] [--json]

Two processes run the program of `greenboost bench gpu`, one of them under `greenboost run`, and take
turns on one processor: a token of the one, then of the other, so that what else the machine does meets
both. A batch of 1 and a small model keep the host busy with launches, not the GPU. Each token under the
shim is compared with the mean of the bare ones before and after it. Needs an NVIDIA GPU and PyTorch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tierd.cli.bench_gpu_program import (  # noqa: E402
    PROGRAMS,
    end_program,
    program_events,
    start_program,
    tell_program,
)
from tierd.cli.signals import Interrupted, hold_signals  # noqa: E402


class Turns:
    """The program, which waits before each pass until it is its turn."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events = program_events(process, lambda: math.inf)

    def wait(self) -> dict[str, Any] | None:
        """Until it waits. Returns the pass that it made; None at its end."""
        made: dict[str, Any] = {"phase": None}
        for event in self.events:
            if event["event"] == "mark":
                return made
            if event["event"] == "pass":
                made = event
        if self.process.wait():
            sys.exit(f"llama.py failed, status {self.process.returncode}")
        return None

    def turn(self) -> dict[str, Any] | None:
        """Let it go on to where it waits next; as wait()."""
        tell_program(self.process)
        return self.wait()


def decode(bare: Turns, shimmed: Turns) -> tuple[list[float], list[float]]:
    """Seconds of each token, of both in turns."""
    took: tuple[list[float], list[float]] = ([], [])
    both = (bare, shimmed)
    for one in both:
        one.wait()
    while None not in (made := [one.turn() for one in both]):
        for seconds, last in zip(took, made, strict=True):
            if last and last["phase"] == "decode":
                seconds.append(last["seconds"])
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a token under the shim while all is resident.")
    parser.add_argument("--tokens", type=int, default=300, help="of each, in turns: 3 or more (default 300)")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the model (default 2048)")
    parser.add_argument("--layers", type=int, default=16, help="its layers (default 16)")
    parser.add_argument("--python", default="python3", help="the Python that has PyTorch (default python3)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every token's seconds")
    options = parser.parse_args()
    if options.tokens < 3:
        parser.error("--tokens: give 3 or more")
    model = {"layers": options.layers, "hidden": options.hidden, "intermediate": 4 * options.hidden}
    model |= {"heads": options.hidden // 64, "kv-heads": 8, "vocabulary": 32000, "prompt": 512}
    passes = {"repeat": 1, "warmup": 20, "tokens": options.tokens}
    program = [options.python, str(PROGRAMS / "llama.py"), f"--turns={max(os.sched_getaffinity(0))}"]
    program += [f"--{name}={value}" for name, value in (model | passes).items()]
    greenboost = [sys.executable, "-m", "tierd.cli", "run", "--"]
    os.chdir(ROOT)
    with hold_signals() as held, tempfile.TemporaryDirectory() as folder, ExitStack() as undo:

        def start(*command: str) -> Turns:
            process = start_program(command, os.environ, held, lambda: None, sys.stderr.buffer)
            undo.callback(end_program, process)
            return Turns(process)

        bare = start(*program, f"--logits={folder}/bare")
        shimmed = start(*greenboost, *program, f"--logits={folder}/shim")
        try:
            with held.let_in():
                theirs, ours = decode(bare, shimmed)
        except Interrupted as interrupted:
            sys.exit(128 + interrupted.number)
        same = Path(folder, "bare").read_bytes() == Path(folder, "shim").read_bytes()
    around = [(before + after) / 2 for before, after in pairwise(theirs)]
    more = [own / other - 1 for own, other in zip(ours, around, strict=False)]
    low, middle, high = statistics.quantiles(more, n=4)
    before, after = statistics.median(theirs), statistics.median(ours)
    if options.json:
        figures = {
            "bare_seconds": before,
            "shim_seconds": after,
            "more": middle,
            "more_quartiles": [low, high],
        }
        tokens = {"bare_tokens_seconds": theirs, "shim_tokens_seconds": ours}
        print(json.dumps({**figures, "pairs": len(more), "same_bits": same, **tokens}))
    else:
        print(f"bare {before * 1e3:.3f} ms, under the shim {after * 1e3:.3f} ms; ", end="")
        print(
            f"a token takes {middle:+.2%} (median of {len(more)} pairs; quartiles {low:+.2%} to {high:+.2%})"
        )
    if not same:
        sys.exit("the logits differ: run it again, as bare ones once did, too (docs/bench-gpu.md)")


if __name__ == "__main__":
    main()
