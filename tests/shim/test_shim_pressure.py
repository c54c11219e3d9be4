# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that computes while RAM is taken from it and given back, again and again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.daemon_harness import MIB, running, status
from tests.unit.pressure_harness import FakeSource, fake_source
from tierd.config import Config
from tierd.model import PressureLevel

from .tiers import ROOT, Runner

source = pytest.fixture(fake_source)


async def arenas_are(conf: Config, process: subprocess.Popen[str], right: Callable[[int], bool]) -> bool:
    """Waits until the number of arenas is; False: the process has ended first."""
    with trio.fail_after(60):
        while process.poll() is None:
            if right((await status(conf))["arenas"]):
                return True
            await trio.testing.wait_all_tasks_blocked(0.001)
    return False


@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("ops", ["random_ops", "excess_ops 21"])
async def test_results_are_right_while_arenas_come_and_go(
    runner: Runner, tmp_path: Path, source: FakeSource, ops: str, late: str
) -> None:
    """Of eight allocations of up to 16 MiB, 40 MiB fit VRAM; RAM has 32 MiB, or some of that."""
    directory = tmp_path / "daemon"
    directory.mkdir()
    async with running(directory, ram="32MiB", arena="4MiB", extents=128) as conf:
        environ = runner.served(conf.socket, 40 * MIB, SOFTCUDA_LATE=late)
        rounds = 0
        with (tmp_path / "said").open("w+") as said:
            command = runner.command("-m", *f"tests.shim.programs.{ops}".split(), "5", "400", "8", "16")
            process = subprocess.Popen(command, env=environ, cwd=ROOT, text=True, stdout=said, stderr=said)  # noqa: ASYNC220 - it takes no time
            try:
                # All of them, so that exactly three stay, which kernels that name 25 chunks need.
                while await arenas_are(conf, process, lambda n: n == 8):
                    source.say(PressureLevel.LOW, arenas=5)
                    if await arenas_are(conf, process, lambda n: n <= 3):
                        rounds += 1
                    source.say(PressureLevel.CALM, arenas=8)
            finally:
                process.kill()
            ended = await trio.to_thread.run_sync(process.wait)
            said.seek(0)
            text = said.read()
            assert (ended, text[-6:]) == (0, "right\n"), text
        # How often depends on who is the quicker.
        assert rounds
        assert (await status(conf))["pressure"]["returned_bytes"] >= rounds * 3 * 4 * MIB
