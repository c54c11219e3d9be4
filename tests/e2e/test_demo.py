# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/demo as a newcomer runs it: it verifies, it can be kept and stopped, and it leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "tools" / "demo"
KEPT = ROOT / "build" / "demo-kept"
GREENBOOST = ROOT / ".venv" / "bin" / "greenboost"
MIB = 1 << 20

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="/dev/fuse cannot be opened: there is no view to look at",
)


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEMO, *arguments], cwd="/", capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def left_behind() -> list[str]:
    """Directories, mounts and processes of demos in this checkout."""
    directories = [str(path) for path in (ROOT / "build").glob("demo*")]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f"{ROOT}/build/demo" in line]
    return directories + mounts + demo_processes()


def demo_processes() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "build/demo" in command and os.readlink(entry / "cwd") == str(ROOT):
                found.append(f"{entry.name}: {command}")
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    assert left_behind() == []
    yield
    try:
        assert left_behind() == []
    finally:
        demo("--stop")


def test_the_answer_from_three_tiers_is_that_of_one() -> None:
    figures = last_line(demo())
    assert figures["verified"] is True
    assert figures["max_abs_diff"] == 0
    assert figures["weights_bytes"] > figures["vram_limit_bytes"] + figures["ram_limit_bytes"]
    assert figures["vram_limit_bytes"] == 56 * MIB
    assert figures["ram_limit_bytes"] == 16 * MIB
    resident = figures["resident_bytes"]
    assert 0 < resident["vram"] <= figures["vram_limit_bytes"]
    assert 0 < resident["ram"] <= figures["ram_limit_bytes"]
    # At the fullest moment the tiers held the weights and the other work, which took all VRAM.
    assert sum(resident.values()) >= figures["weights_bytes"] + 56 * MIB
    assert figures["nvme_written_bytes"] > 0
    assert figures["nvme_read_bytes"] > 0
    # For the first batch, chunks of the weights that had no room; for the second all, as the other work took
    # all VRAM.
    assert figures["vram_in_bytes"] > 2 * figures["weights_bytes"] - figures["vram_limit_bytes"]
    assert figures["seconds"] > 0


LOOKS = """
import sys
from pathlib import Path

from minilm import othertask
from minilm.driver import Driver
from minilm.kernels import MODULE
from minilm.model import Model
from minilm.sentences import FIRST
from minilm.weights import model_directory

def show(model):
    [map] = Path(sys.argv[1]).glob(f"sessions/*/allocations/{model.weights.address:#x}/map")
    print(map.read_text().strip())

with Driver() as driver:
    program = MODULE.load(driver)
    model = Model(driver, program, model_directory())
    model.embed(FIRST)
    show(model)
    driver.free = lambda address: None  # or the model would come back
    othertask.run(driver, program, 56 << 20)
    show(model)
"""


@needs_fuse
def test_other_work_drives_the_whole_model_out_of_vram(tmp_path: Path) -> None:
    """The demo's second batch comes after everything has been evicted once: the view shows it."""
    view = tmp_path / "view"
    view.mkdir()
    tiers = ["--vram=56MiB", "--ram=16MiB", "--chunk=2MiB", f"--spill={tmp_path}/spill:192MiB"]
    environ = os.environ | {
        "LD_LIBRARY_PATH": str(ROOT / "tools/softcuda/build"),
        "PYTHONPATH": str(ROOT / "tools"),
        "SOFTCUDA_VRAM": "64MiB",
    }
    done = subprocess.run(
        [GREENBOOST, "run", *tiers, "--view", view, "--", sys.executable, "-c", LOOKS, view],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split()
    assert len(before) == len(after) == 44
    assert {"1", "2", "3"} <= set(before)
    assert {"2", "3"} <= set(after)
    # What is predicted to come next may be on its way back before the other work is over.
    assert after.count("1") + after.count("^") <= 2 < before.count("1")


@needs_fuse
def test_keep_leaves_a_view_of_every_tier_until_it_is_stopped() -> None:
    try:
        assert last_line(demo("--keep"))["verified"] is True
        maps = "".join(path.read_text() for path in KEPT.glob("view/sessions/*/allocations/*/map"))
        assert {"1", "2", "3"} <= set(maps)
        asked = subprocess.run(
            [GREENBOOST, "status", "--json", "--socket", KEPT / "tierd.sock"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(json.loads(asked.stdout)["sessions"]) == 1
    finally:
        assert demo("--stop").returncode == 0
    assert left_behind() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_cleans_up(number: signal.Signals) -> None:
    with subprocess.Popen([DEMO], stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout is not None
        said = ""
        # Within the second run, when daemon, program and spill file exist.
        while not re.search(r"^2\..*^  model:", said, re.MULTILINE | re.DOTALL):
            line = running.stdout.readline()
            assert line, f"the demo ended before it could be interrupted:\n{said}"
            said += line
        os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
        assert running.wait(timeout=60) == 128 + number


@pytest.mark.parametrize("arguments", [["--kep"], ["--stop", "now"]])
def test_what_is_not_understood_is_refused_before_anything_is_done(arguments: list[str]) -> None:
    done = demo(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"tools/demo: '{' '.join(arguments)}' is not understood" in done.stderr
    assert "usage: tools/demo" in done.stderr


def test_stop_without_anything_kept_is_fine() -> None:
    assert demo("--stop").returncode == 0
