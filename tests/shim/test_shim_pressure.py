# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that computes while RAM is taken from it and given back, again and again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.unit.daemon_harness import MIB, running, status
from tests.unit.pressure_harness import FakeSource, fake_source
from tierd import tiers
from tierd.capacity import Limits
from tierd.model import PressureLevel
from tierd.policy import Event, State, Transition, apply

from . import sanitizer
from .tiers import ROOT, Runner

source = pytest.fixture(fake_source)


class Seen:
    """What the daemon's state is after each of its steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = State(Limits(0, 1, 0))
        self._came = False
        self._news = trio.Event()

        def step(state: State, event: Event) -> Transition:
            self.state, actions = apply(state, event)
            self._came |= bool(self.state.sessions)
            self._news.set()
            self._news = trio.Event()
            return self.state, actions

        monkeypatch.setattr(tiers, "apply", step)

    async def until(self, right: Callable[[State], bool]) -> bool:
        """Waits for it; False: the program has come and gone first."""
        with trio.fail_after(60 * sanitizer.SLOWER):
            while not right(self.state):
                if self._came and not self.state.sessions:
                    return False
                await self._news.wait()
        return True


def all_answered(state: State) -> bool:
    return bool(state.short and not any(session.recalled for session in state.sessions.values()))


@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("ops", ["random_ops", "excess_ops 21"])
async def test_results_are_right_while_arenas_come_and_go(
    runner: Runner, tmp_path: Path, source: FakeSource, monkeypatch: pytest.MonkeyPatch, ops: str, late: str
) -> None:
    """Of eight allocations of up to 16 MiB, 40 MiB fit VRAM; RAM has 32 MiB, or some of that."""
    directory = tmp_path / "daemon"
    directory.mkdir()
    seen = Seen(monkeypatch)
    async with running(directory, ram="32MiB", arena="4MiB", extents=128) as conf:
        environ = runner.served(conf.socket, 40 * MIB, SOFTCUDA_LATE=late)
        returned = 0
        with (tmp_path / "said").open("w+") as said:
            command = runner.command("-m", *f"tests.shim.programs.{ops}".split(), "5", "400", "8", "16")
            process = subprocess.Popen(command, env=environ, cwd=ROOT, text=True, stdout=said, stderr=said)  # noqa: ASYNC220 - it takes no time
            try:
                # Of all eight, so that three stay at least, which kernels that name 25 chunks need.
                while await seen.until(lambda state: state.held_arenas == 8 and not state.short):
                    source.say(PressureLevel.LOW, arenas=5)
                    # Some are refused at times, as they cannot be emptied.
                    if await seen.until(all_answered):
                        returned += 8 - seen.state.held_arenas
                    source.say(PressureLevel.CALM, arenas=8)
            finally:
                process.kill()
            ended = await trio.to_thread.run_sync(process.wait)
            said.seek(0)
            text = said.read()
            assert (ended, text[-6:]) == (0, "right\n"), text
        # How often depends on who is the quicker.
        assert returned
        assert (await status(conf))["pressure"]["returned_bytes"] >= returned * 4 * MIB
