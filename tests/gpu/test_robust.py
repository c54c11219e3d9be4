# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong while a program runs on a real GPU: a daemon that dies, no memory in any tier."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .conftest import PYTHON
from .test_programs import ENVIRONMENT, PROGRAMS, run, same, start

pytestmark = pytest.mark.gpu

CLI = [sys.executable, "-m", "tierd.cli"]
TIERS = ["--ram", "512MiB", "--chunk", "2MiB"]


@contextmanager
def daemon(socket: Path, spill: Path) -> Iterator[subprocess.Popen[str]]:
    """One that is killed in the end, when it serves."""
    command = [*CLI, "daemon", "--socket", str(socket), "--spill", f"{spill}:4GiB", *TIERS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "serving" in line:
                break
        try:
            assert process.poll() is None, said
            yield process
        finally:
            process.kill()


def test_the_daemon_is_killed_while_tokens_come(tmp_path: Path) -> None:
    run(["llama.py"], tmp_path / "bare.npz")
    socket, spill, out = tmp_path / "socket", tmp_path / "spill", tmp_path / "killed.npz"
    command = [*CLI, "run", "--socket", str(socket), "--vram", "200MiB", "--"]
    command += [PYTHON, str(PROGRAMS / "llama.py"), str(out)]
    said: list[str] = []
    with ExitStack() as undo:
        for deaths in range(4):
            with daemon(socket, spill):
                if not deaths:
                    program = undo.enter_context(
                        subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
                    )
                    assert program.stdout is not None
                    lines = iter(program.stdout)
                if deaths < 3:
                    said += [next(lines) for _ in range(6)]
                else:
                    said += lines
                    assert program.wait() == 0
    assert len(said) == 25  # the prompt and 24 tokens
    assert same(tmp_path / "bare.npz", out)


def test_no_tier_has_room(tmp_path: Path) -> None:
    """PyTorch says so as it always does, and goes on with what it has."""
    program, full = [PYTHON, str(PROGRAMS / "oom.py")], str(tmp_path / "full.npz")
    reference = start([*program, str(tmp_path / "bare.npz")], report=tmp_path / "bare")
    flags = ["--vram", "512MiB", "--ram", "512MiB", "--spill", f"{tmp_path / 'spill'}:1GiB"]
    done = start([*program, full], *flags, report=tmp_path / "full.json")
    assert reference.returncode == done.returncode == 0
    assert "CUDA out of memory" in done.stdout
    # Without GreenBoost it had all of the GPU, with it what the tiers hold together.
    assert int(done.stdout.split()[0]) <= 2048 < int(reference.stdout.split()[0])
    assert same(tmp_path / "bare.npz", tmp_path / "full.npz")
