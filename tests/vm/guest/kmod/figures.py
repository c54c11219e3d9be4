# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of the module, for docs/measurements; run in a guest that has it, with KMOD_PROGRAMS set.

usage: python -m tests.vm.guest.kmod.figures [SECONDS]
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

TRACING = Path("/sys/kernel/tracing")
ROUNDS = 40


def speed() -> None:
    """Allocation against zeroing of the same pages, in one run: the best of many of each.

    On a busy host the guest is often interrupted; the best are those in which it was not.
    """
    program = Path(os.environ["KMOD_PROGRAMS"]) / "speed"
    done = subprocess.run([program, str(ROUNDS)], check=True, capture_output=True, text=True)
    rounds = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    system, pool, zero = map(min, zip(*rounds, strict=True))
    print(f"256 MiB, best of {ROUNDS}: zeroing {zero:.0f} ms")
    print(f"allocation from the system {system:.0f} ms, {system / zero:.2f} times that")
    print(f"allocation from the pool {pool:.0f} ms, {pool / zero:.2f} times that")


def rest(seconds: float) -> None:
    """The watchdog's share of a processor while nothing happens."""
    names = ("workqueue_execute_start", "workqueue_execute_end")
    switches = [TRACING / "events" / "workqueue" / name / "enable" for name in names]
    (TRACING / "trace").write_text("")
    for switch in switches:
        switch.write_text("1")
    time.sleep(seconds)
    for switch in switches:
        switch.write_text("0")
    begun: dict[str, float] = {}
    took: list[float] = []
    for line in (TRACING / "trace").read_text().splitlines():
        found = re.search(
            r"(\S+-\d+) .* (\d+\.\d+): workqueue_execute_(start|end): .*function gb_clock_run", line
        )
        if found is None:
            continue
        worker, at, what = found[1], float(found[2]), found[3]
        if what == "start":
            begun[worker] = at
        elif worker in begun:
            took.append(at - begun.pop(worker))
    usual = statistics.median(took)
    print(f"watchdog at rest: {len(took)} looks in {seconds:.0f} s, {usual * 1e6:.0f} us in the median:")
    print(f"{usual * len(took) / seconds:.4%} of a processor; with interruptions {sum(took) / seconds:.4%}")


if __name__ == "__main__":
    speed()
    rest(float(sys.argv[1]) if len(sys.argv) > 1 else 30)
