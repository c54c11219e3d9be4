# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost bench gpu without a GPU: its modes run a stand-in for the model, on the software device.

The stand-in's memory is really paged, so bytes and results are real; times are not asserted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cli_harness import ROOT, Cli, children_of, refused, wait_gone
from tierd.cli.bench_gpu_bus import open_bus
from tierd.cli.bench_gpu_program import Said, run_program
from tierd.cli.signals import hold_signals

SOFTCUDA = ROOT / "tools" / "softcuda" / "build"
MODEL = (
    "--hidden",
    "1024",
    "--layers",
    "1",
    "--chunk",
    "2MiB",
    "--prompt",
    "16",
    "--tokens",
    "3",
    "--repeat",
    "2",
)
LEFT_OUT = ["accelerate", "accelerate+disk", "flextensor"]


@pytest.fixture
def cli() -> Iterator[Cli]:
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/var/tmp") as home:
        cli = Cli(Path(home))
        stand_in = Path(__file__).with_name("bench_gpu_python.py")
        python = cli.home / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
        python.chmod(0o755)
        (cli.home / "disk").mkdir()
        for name in ("GREENBOOST_SHIM", "GREENBOOST_CUDA_DRIVER"):
            del cli.environ[name]
        cli.environ |= {
            "LD_LIBRARY_PATH": str(SOFTCUDA),
            "SOFTCUDA_VRAM": "1GiB",
            "SOFTCUDA_POISON": "1",
        }
        yield cli


def bench(cli: Cli, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return cli("bench", "gpu", "--python", cli.home / "python", *arguments)


def modes_of(text: str) -> dict[str, dict[str, Any]]:
    return {one["mode"]: one for one in json.loads(text)["modes"]}


def test_all_modes(cli: Cli) -> None:
    done = bench(cli, *MODEL, "--spill", "disk/spill", "--json", "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    answer = json.loads((cli.home / "out.json").read_text())
    assert answer["machine"]["gpu"]["name"] == "Stub"
    assert answer["ceilings"]["h2d_bytes_per_second"] == 2e9
    assert answer["ceilings"]["disk"]["random"] > 0
    modes = modes_of((cli.home / "out.json").read_text())
    assert [name for name, one in modes.items() if one["status"] == "left out"] == LEFT_OUT
    assert [name for name, one in modes.items() if one["same_bits"]] == [
        "shim",
        "paged",
        "paged+nvme",
        "mapped",
    ]
    assert modes["vram"]["decode"]["moved"] is None
    assert modes["shim"]["decode"]["moved"]["h2d_bytes"] == 0
    for name in ("paged", "paged+nvme"):
        one = modes[name]
        assert len(one["prefill"]["passes_seconds"]) == 2
        assert len(one["decode"]["passes_seconds"]) == 3
        # Phases are counted apart, and together are no more than the whole.
        moved = [one["load_moved"], one["prefill"]["moved"], one["decode"]["moved"]]
        assert all(part["d2h_bytes"] > 0 for part in moved)
        total = one["greenboost"]["total"]["counters"]["d2h_bytes"]
        assert sum(part["d2h_bytes"] for part in moved) <= total
        assert f"--vram={answer['limits']['vram_bytes']}" in one["command"]
        # Copied beside it, for it: before and after each phase, and where one pauses.
        for phase, times in (("prefill", 2), ("decode", 3)):
            rates = one[phase]["h2d_bytes_per_second_beside"]
            assert len(rates) == 3 * times
            assert min(rates) > 0
            assert one[phase]["share_of_ideal_now"] > 0
            reads = one[phase]["disk_bytes_per_second_beside"]
            assert [rate > 0 for rate in reads] == [True] * (times if name == "paged+nvme" else 0)
            assert (one[phase]["nvme_read_share_of_beside"] is not None) == (name == "paged+nvme")
            if name == "paged+nvme":
                assert one[phase]["nvme_reading_share"] > 0
    assert modes["vram"]["decode"]["h2d_bytes_per_second_beside"] == []
    assert modes["vram"]["decode"]["share_of_ideal_now"] is None
    assert modes["paged"]["greenboost"]["total"]["nvme_written_bytes"] == 0
    in_place = modes["mapped"]["greenboost"]["total"]["counters"]
    assert in_place["chunks_in_place"] > 0
    assert in_place["h2d_bytes"] == in_place["d2h_bytes"] == 0
    assert modes["paged+nvme"]["decode"]["moved"]["nvme_written_bytes"] > 0
    capped = modes["paged+nvme"]
    assert bool(capped["ram_cap_bytes"]) != bool(capped["ram_uncapped_reason"])
    assert ("RAM was NOT capped" in done.stdout) == bool(capped["ram_uncapped_reason"])
    assert done.stdout.count("of what the disk gave beside it") == 1
    rows = [
        line.split()[0] for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in modes
    ]
    assert rows == list(modes)
    assert cli.left_behind(["disk", "python", "out.json"]) == []
    assert list((cli.home / "disk").iterdir()) == []


def test_json_alone(cli: Cli) -> None:
    done = bench(cli, *MODEL, "--modes", "shim,vram", "--json", "-")
    assert done.returncode == 0, done.stderr
    # In their own order: the reference is the first.
    assert list(modes_of(done.stdout)) == ["vram", "shim"]
    assert "a launch by PyTorch" in done.stderr


def test_plot(cli: Cli) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the plot is NOT tested")
    done = bench(cli, *MODEL, "--modes", "vram,paged", "--plot", "plot.svg")
    assert done.returncode == 0, done.stderr
    assert (cli.home / "plot.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("how", "seconds", "status", "says"),
    [
        ("fail", 60, 1, "paged +failed: RuntimeError: CUDA error: out of memory"),
        ("mute", 5, 1, "paged +cut: after 5 s"),
        # It decoded one token, and that is shown.
        ("hang", 9, 0, r"paged +[\d.]+ .* cut: after 9 s"),
        ("other", 60, 1, r"paged +[\d.]+ .* NO\nvram again .* yes$"),
        # It is not said to be ours what the program does by itself.
        ("random", 60, 0, r"paged +[\d.]+ .* NO\nvram again .* NO$"),
    ],
)
def test_a_mode_that_goes_wrong(cli: Cli, how: str, seconds: int, status: int, says: str) -> None:
    cli.environ["BENCH_STUB"] = how
    done = bench(cli, *MODEL, "--modes", "vram,paged", "--timeout", str(seconds), "--json", "out.json")
    assert done.returncode == status, done.stdout + done.stderr
    assert re.search(says, done.stdout, re.MULTILINE), done.stdout
    paged = modes_of((cli.home / "out.json").read_text())["paged"]
    assert paged["same_bits"] is (False if how in ("other", "random") else None)
    if how == "hang":
        assert paged["decode"]["moved"]["d2h_bytes"] > 0
    if how == "other":
        assert paged["max_abs_difference"] >= 1
        assert done.stderr == "greenboost: paged: the results are not those of the reference\n"
    assert cli.left_behind(["disk", "python", "out.json"]) == []


def test_ctrl_c_keeps_what_there_is(cli: Cli) -> None:
    sign = cli.home / "hangs"
    cli.environ |= {"BENCH_STUB": "hang", "BENCH_STUB_SIGN": str(sign)}
    arguments = (*MODEL, "--modes", "vram,paged", "--json", "out.json")
    running = cli.start("bench", "gpu", "--python", str(cli.home / "python"), *arguments)
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("vram"):
            break
    # bus.py, the daemon, and the `greenboost run` around the program.
    while len(children := children_of(running.pid)) < 3:
        assert running.poll() is None
    while not sign.exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGINT
    assert re.search(r"paged +[\d.]+ .* cut: interrupted", out)
    for pid in children:
        wait_gone(pid)
    modes = modes_of((cli.home / "out.json").read_text())
    assert list(modes) == ["vram", "paged"]
    assert len(modes["paged"]["decode"]["passes_seconds"]) == 1
    assert modes["paged"]["decode"]["moved"]["d2h_bytes"] > 0
    assert cli.left_behind(["disk", "python", "out.json", "hangs"]) == []


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--modes", "fast"), 2, "'fast' is no mode; there are vram, shim"),
        (("--modes", ","), 2, "no mode is given"),
        (("--chunk", "3MiB"), 2, "power of two"),
        (("--tokens", "0"), 2, "'0' is not a number from 1 on"),
        (("--seed", "-1"), 2, "not a whole number"),
        (("--vram", "120%"), 2, "--vram: '120%' is more than the whole"),
        (("--vram", "100%"), 2, "holds the whole model"),
        (("--ram", "90%"), 2, "holds all that is not in VRAM"),
        (("--layers", "500"), 2, "give a smaller --layers"),
        (("--spill", "none/spill"), 2, "/none does not exist; create it"),
        (("--spill", "disk/spill:16MiB"), 2, "is too little"),
        (("--json", "none/out.json"), 2, "--json: none/out.json cannot be written"),
        (("--plot", "plot.pdf"), 2, "neither .svg nor .png"),
        (("--python", "/none/python"), 2, "there is no program /none/python"),
        (("--python", "false"), 1, "failed: exit status 1; run it by hand"),
    ],
)
def test_refusals(cli: Cli, arguments: tuple[str, ...], status: int, says: str) -> None:
    refused(bench(cli, *MODEL, *arguments), status, says)
    assert cli.left_behind(["disk", "python"]) == []


def test_the_bus_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(SOFTCUDA))
    with hold_signals() as held, open_bus(held) as bus:
        assert bus.rates(0) == []
        rates = bus.rates(65 << 20)  # not in whole pieces
        assert len(rates) == 3
        assert min(rates) > 0
        assert not bus.silent


def test_the_bus_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(SOFTCUDA))
    before = children_of(os.getpid())
    with hold_signals() as held, open_bus(held) as bus:
        (pid,) = set(children_of(os.getpid())) - set(before)
        os.kill(pid, signal.SIGKILL)
        assert bus.rates(1 << 20) == []
        assert bus.silent == "it ended with status -9"
        assert bus.rates(1 << 20) == []


MARKS = 'print(\'{"event": "mark", "name": "here"}\', flush=True); input(); print(\'{"event": "done"}\')'


def test_what_happens_at_marks_is_not_the_programs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus is asked there: what comes after, as the answer to compare, must not be lost for it."""
    later, clock = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + later)

    def at_mark(name: str) -> None:
        nonlocal later
        later += 1000

    said, command = Said(), [sys.executable, "-c", MARKS]
    with hold_signals() as held:
        run_program(command, said, environ=os.environ, held=held, seconds=60, at_mark=at_mark)
    assert not said.cut
    assert said.last("done")


def test_nobody_answers_for_the_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with hold_signals() as held, open_bus(held) as bus:
        assert "libcuda.so.1" in bus.silent
        assert bus.rates(1 << 20) == []


def test_no_torch(cli: Cli) -> None:
    cli.environ["BENCH_STUB"] = "no-torch"
    refused(bench(cli), 1, "no PyTorch here")


def test_the_real_programs_say_what_is_missing() -> None:
    """On a machine with neither PyTorch nor a GPU: one line, and what to do."""
    machine = ROOT / "tierd" / "cli" / "benchgpu" / "machine.py"
    done = subprocess.run(
        [sys.executable, str(machine)], capture_output=True, text=True, check=True, env=os.environ
    )
    answer = json.loads(done.stdout)
    if "gpu" in answer:
        pytest.skip("there is a GPU")
    assert re.search("--python|pip install|greenboost doctor", answer["error"])
