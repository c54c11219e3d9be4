# SPDX-License-Identifier: GPL-2.0-or-later
"""Another process eats the machine's memory while a program uses more than VRAM and RAM have.

With the module or without it, as the guest has been started.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tierd import memory, wire
from tierd.device import Device

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[4]
SOFTCUDA = ROOT / "tools/softcuda/build/libcuda.so.1"
SHIM = ROOT / "shim/build/libgreenboost_cuda.so"
MIB = 1 << 20
PATIENCE = 240

VRAM, RAM, ARENA, USED = 16, 192, 16, 224  # MiB
STEP = 32 * MIB


class Daemon:
    """A daemon on /dev/tier0, as a process."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "sock"
        command = [sys.executable, "-m", "tierd.cli", "daemon", "--config", os.devnull]
        command += [f"--socket={self.socket}", "--chunk=2MiB", f"--ram={RAM}MiB", f"--arena={ARENA}MiB"]
        self.process = subprocess.Popen([*command, "--spill=/dev/tier0"], cwd=ROOT)
        self.until(lambda _: True)

    def status(self) -> dict[str, Any]:
        with wire.connect(self.socket) as client:
            answer: Any = client.call("status")
        snapshot: dict[str, Any] = answer["snapshot"]
        return snapshot

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status for which it holds."""
        last: dict[str, Any] = {}
        for _ in poll():
            assert self.process.poll() is None
            with suppress(wire.NoDaemonError):  # not yet
                if condition(last := self.status()):
                    return last
        raise TimeoutError(json.dumps(last, indent=1))

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0


def poll() -> Iterator[None]:
    """Again and again, for as long as it is worth."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)


def program(daemon: Daemon) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "LD_LIBRARY_PATH": str(SOFTCUDA.parent),
        "LD_PRELOAD": str(SHIM),
        "GREENBOOST_SOCKET": str(daemon.socket),
        "GREENBOOST_CUDA_DRIVER": str(SOFTCUDA),
        "GREENBOOST_VRAM": str(VRAM * MIB),
        "SOFTCUDA_VRAM": str((VRAM + 16) * MIB),
    }
    command = [sys.executable, str(Path(__file__).parent / "program.py"), str(USED)]
    return subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ooms() -> int:
    lines = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(lines["oom_kill"])


def source() -> str:
    """Whom the daemon should hear."""
    with suppress(OSError), Device() as module:
        module.pressure()
        return "module"
    return "system"


def arenas(snapshot: dict[str, Any]) -> int:
    count: int = snapshot["arenas"]
    return count


def test_memory_is_given_back_before_anything_is_killed(tmp_path: Path) -> None:
    killed = ooms()
    with ExitStack() as undo:
        daemon = Daemon(tmp_path)
        undo.callback(daemon.process.kill)
        working = undo.enter_context(program(daemon))
        undo.callback(working.kill)
        assert working.stdout is not None
        assert working.stdin is not None
        assert working.stdout.readline() == "1\n"
        before = daemon.until(lambda now: arenas(now) == RAM // ARENA)
        assert before["pressure"]["source"] == source()
        assert before["tiers"]["nvme"]["used_bytes"] > 0

        # More than there is: what the arenas have is needed too.
        eaten, meal = 0, b"x" * STEP
        goal = (memory.machine().available + RAM * MIB // 2) // STEP * STEP
        with mmap.mmap(-1, goal, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as eater:
            while eaten < goal:
                # As others would whom the kernel makes wait: not the last bit at once.
                daemon.until(lambda now: memory.machine().available > 2 * STEP)
                eater[eaten : eaten + STEP] = meal
                eaten += STEP
            pressed = daemon.until(lambda now: arenas(now) <= RAM // ARENA - 6)
            assert pressed["pressure"]["returned_bytes"] >= 6 * ARENA * MIB
            assert pressed["pressure"]["withheld_bytes"] >= 6 * ARENA * MIB
            assert pressed["pressure"]["events"] > 0
            # Everything is somewhere, and the program goes on meanwhile.
            number = int(working.stdout.readline())
            while int(working.stdout.readline()) < number + 2:
                pass
        # The eater is gone, and the program may have its memory again.
        daemon.until(lambda now: now["pressure"]["level"] == "calm" and arenas(now) >= RAM // ARENA - 1)
        working.stdin.close()
        rest = working.stdout.read().splitlines()
        assert rest[-1] == "right"
        assert working.wait(PATIENCE) == 0
        daemon.end()
    assert ooms() == killed
