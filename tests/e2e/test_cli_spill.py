# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost spill list, add, drain and remove, on a running daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cli_harness import TIERS, Cli, cli_with_socket, refused
from tests.unit.nvme_harness import loop_device, needs_loop


@pytest.fixture
def cli() -> Iterator[Cli]:
    with cli_with_socket() as cli:
        yield cli


def accepted(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def paths(cli: Cli) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(cli("spill", "list", "--json").stdout)["spill"]
    return listed


def test_paths_come_and_go(cli: Cli) -> None:
    with cli.serving(*TIERS) as daemon:
        assert cli("spill", "list").stdout == "no spill path; add one with 'greenboost spill add PATH:SIZE'\n"
        accepted(cli("spill", "add", "one:33MiB"))
        accepted(cli("spill", "add", "two:65MiB", "--weight", "2.5", "--encrypt", "--daily-writes", "1GB"))
        one, two = paths(cli)
        assert (one["path"], one["total_bytes"], one["state"]) == (str(cli.home / "one"), 32 << 20, "active")
        assert (two["weight"], two["encrypted"], two["daily_writes_bytes"]) == (2.5, True, 10**9)
        assert one["rate_bytes_per_second"] > 0
        text = cli("spill", "list").stdout
        assert re.search(r"/two +active +0 B +64\.0 MiB .* encrypted, weight 2\.5, .* written today", text)
        status = json.loads(cli("status", "--json").stdout)
        assert status["tiers"]["nvme"]["total_bytes"] == 96 << 20
        refused(cli("spill", "add", "one:33MiB"), 1, "is a spill path already")

        accepted(cli("spill", "drain", "one"))
        assert [path["state"] for path in paths(cli)] == ["draining", "active"]
        refused(cli("spill", "add", "one", "--encrypt"), 1, "is being drained and has other settings")
        accepted(cli("spill", "add", "one"))  # the drain is called off
        assert [path["state"] for path in paths(cli)] == ["active", "active"]
        accepted(cli("spill", "remove", "one"))
        assert not (cli.home / "one").exists()
        refused(cli("spill", "remove", "one"), 1, f"is not a spill path; there are: {cli.home / 'two'}")
    assert daemon.returncode == 0
    assert cli.left_behind() == []


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("add", "new"), 1, "does not exist and no size is given; give one, as in PATH:64GiB"),
        (("add", "foreign:33MiB"), 1, "is a file with content that is not GreenBoost's"),
        (("add", "foreign:33MiB", "--force"), 1, "is a file with content that is not GreenBoost's"),
        (("add", "small:1MiB"), 1, "is too small for a chunk of 2.0 MiB"),
        (("add", "big:9999TiB"), 1, "do not fit"),
        (("add", "x:12Gig"), 2, "unknown unit 'Gig'"),
        (("add", "x:1GiB", "--weight", "0"), 2, "--weight: a number from 0.001 to 1000 is wanted"),
        (("add", "x:1GiB", "--daily-writes", "much"), 2, "--daily-writes: 'much' is not a size"),
        (("add", "x:1GiB", "--poll", "hard"), 2, "--poll: poll is one of none, io, sq"),
        (("drain", "nothing"), 1, "is not a spill path; there are: none"),
        (("eat", "nothing"), 2, "invalid choice"),
    ],
)
def test_each_refusal(cli: Cli, arguments: tuple[str, ...], status: int, says: str) -> None:
    (cli.home / "foreign").write_text("my thesis")
    with cli.serving(*TIERS):
        refused(cli("spill", *arguments), status, says)
        assert paths(cli) == []
    assert (cli.home / "foreign").read_text() == "my thesis"
    assert cli.left_behind(["foreign"]) == []


@needs_loop
def test_a_device_with_something_on_it_is_taken_only_by_force(cli: Cli) -> None:
    backing = cli.home / "backing"
    backing.write_bytes(b"")
    os.truncate(backing, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(backing)], check=True)
    with loop_device(backing) as device, cli.serving(*TIERS):
        refused(cli("spill", "add", device), 1, "holds something else: a file system or a partition table")
        subprocess.run(["fsck.ext4", "-fn", str(backing)], check=True, capture_output=True)
        accepted(cli("spill", "add", device, "--force"))
        assert paths(cli)[0]["total_bytes"] == 62 << 20
        accepted(cli("spill", "remove", device))
        accepted(cli("spill", "add", device))  # it is ours now
    assert cli.left_behind(["backing"]) == []
