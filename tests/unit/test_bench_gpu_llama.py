# SPDX-License-Identifier: GPL-2.0-or-later
"""When the measured program of greenboost bench gpu pauses, with a model that only takes time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tierd.cli.bench_gpu_program import PROGRAMS

PLAY = """
import sys, time
from argparse import Namespace
from unittest.mock import MagicMock

for name in ("torch", "transformers"):
    sys.modules[name] = MagicMock()
sys.path.insert(0, sys.argv[1])
import llama

clock = 0.0
time.perf_counter = lambda: clock
llama.BEGAN = 0.0

def model(**_):
    global clock
    clock += float(sys.argv[2])
    return MagicMock()

options = Namespace(
    seed=0, vocabulary=9, prompt=3, device="cpu", offload="none", repeat=4, warmup=1, tokens=5,
    seconds=1e9, turns=None, logits="/dev/null",
)
llama.measure(options, model)
"""


def marks(seconds: float) -> list[str]:
    """The passes of a run, by phase, and its marks, where a pass takes so long."""
    command = [sys.executable, "-c", PLAY, str(PROGRAMS), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [one.get("name") or one["phase"] for one in events if one["event"] in ("mark", "pass")]


@pytest.mark.parametrize(("seconds", "between"), [(1.0, 9), (6.0, 3), (20.0, 1)])
def test_passes_that_take_long_pause(seconds: float, between: int) -> None:
    def phase(name: str, passes: int) -> list[str]:
        found = [name]  # the mark
        for n in range(passes):
            if n and n % between == 0:
                found.append(f"{name}-pause")
            found.append(name)
        return [*found, f"{name}-end"]

    prefill = ["prefill-warmup"] * 4 + phase("prefill", 4)
    assert marks(seconds) == [*prefill, "decode-warmup", *phase("decode", 5)]
