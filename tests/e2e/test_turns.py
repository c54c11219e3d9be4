# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/bench/turns.py, with the stand-in for the model of greenboost bench gpu."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.e2e.cli_harness import ROOT, Cli

from .test_cli_bench_gpu import cli as cli


def turns(cli: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in cli.environ.items() if name != "GREENBOOST_SOCKET"}
    command = [sys.executable, str(ROOT / "tools/bench/turns.py"), f"--python={cli.home}/python", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def test_one_at_a_time(cli: Cli) -> None:
    done = turns(cli, "--tokens", "5", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["bare_tokens_seconds"]) == len(answer["shim_tokens_seconds"]) == 5
    assert answer["pairs"] == 4
    assert answer["same_bits"]


@pytest.mark.parametrize(("wrong", "said"), [("fail", "out of memory"), ("other", "other logits")])
def test_what_goes_wrong_under_the_shim_is_said(cli: Cli, wrong: str, said: str) -> None:
    cli.environ["BENCH_STUB"] = wrong
    done = turns(cli, "--tokens", "5")
    assert done.returncode == 1
    assert said in done.stderr
