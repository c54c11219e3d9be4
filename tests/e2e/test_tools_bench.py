# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies in tools/bench, on the software device; turns.py with the stand-in for bench gpu's model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.cli_harness import ROOT, Cli, children_of, wait_gone

from .test_cli_bench_gpu import cli as cli


def environ(cli: Cli) -> dict[str, str]:
    return {name: value for name, value in cli.environ.items() if name != "GREENBOOST_SOCKET"}


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools/bench" / name), *arguments]


def bench(cli: Cli, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments), env=environ(cli), capture_output=True, text=True, timeout=120
    )


def turns(cli: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
    return bench(cli, "turns.py", f"--python={cli.home}/python", *arguments)


def test_turns_are_one_at_a_time(cli: Cli) -> None:
    done = turns(cli, "--tokens", "5", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["bare_tokens_seconds"]) == len(answer["shim_tokens_seconds"]) == 5
    assert answer["pairs"] == 4
    assert answer["same_bits"]


def test_turns_tell_which_of_the_two_is_slower(cli: Cli) -> None:
    cli.environ["BENCH_STUB"] = "slow"
    done = turns(cli, "--tokens", "3", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["bare_seconds"], answer["shim_seconds"]) == (1.0, 1.5)
    assert (answer["more"], answer["more_quartiles"]) == (0.5, [0.5, 0.5])


def test_turns_that_are_ended_leave_nothing(cli: Cli) -> None:
    cli.environ |= {"BENCH_STUB": "hang", "BENCH_STUB_SIGN": str(cli.home / "hangs")}
    running = subprocess.Popen(
        command("turns.py", f"--python={cli.home}/python"), env=environ(cli), stdout=subprocess.PIPE
    )
    while not (cli.home / "hangs").exists():
        assert running.poll() is None
        time.sleep(0.01)
    found = children_of(running.pid)
    assert len(found) == 2
    found += [pid for one in found for pid in children_of(one)]
    running.terminate()
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    for pid in found:
        wait_gone(pid)


@pytest.mark.parametrize(("wrong", "said"), [("fail", "out of memory"), ("other", "logits differ")])
def test_turns_say_what_goes_wrong_under_the_shim(cli: Cli, wrong: str, said: str) -> None:
    cli.environ["BENCH_STUB"] = wrong
    done = turns(cli, "--tokens", "5")
    assert done.returncode == 1
    assert said in done.stderr


def test_load_reads_back_what_went_below(cli: Cli) -> None:
    sizes = ["--size=40MiB", "--piece=5MiB", "--pairs=1"]
    done = bench(cli, "load.py", *sizes, "--json", "--", "--vram=16MiB", "--ram=48MiB", "--chunk=2MiB")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["bytes"] == 40 << 20
    assert len(answer["bare_seconds"]) == len(answer["shim_seconds"]) == 1
    assert answer["speed"] > 0


def test_load_says_what_has_no_room(cli: Cli) -> None:
    sizes = ["--size=40MiB", "--piece=5MiB", "--pairs=1"]
    done = bench(cli, "load.py", *sizes, "--", "--vram=16MiB", "--ram=8MiB", "--chunk=2MiB")
    assert done.returncode == 1
    assert "cuMemAlloc_v2 returned 2" in done.stderr
