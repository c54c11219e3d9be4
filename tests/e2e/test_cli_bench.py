# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost bench spill, small: what it says, what it refuses and what it leaves. No speed is asserted."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli_harness import Cli, children_of
from tierd.nvme.spillpath import DATA_OFFSET

SMALL = ("--size", "32MiB", "--chunk", "2MiB", "--depth", "2", "--rounds", "2")
FOREIGN = b"somebody's" * (1 << 20)
DIRECTIONS = ["write", "read", "mixed"]

needs_fio = pytest.mark.skipif(
    shutil.which("fio") is None, reason="fio is not installed: the measuring is NOT tested"
)


@pytest.fixture
def cli() -> Iterator[Cli]:
    with tempfile.TemporaryDirectory(prefix="gb-") as home:
        cli = Cli(Path(home))
        (cli.home / "disk").mkdir()
        yield cli


def bench(cli: Cli, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return cli("bench", "spill", *arguments)


def refused(done: subprocess.CompletedProcess[str], status: int, says: str) -> None:
    assert done.returncode == status, done.stderr
    assert re.fullmatch(r"greenboost: [^\n]+\n", done.stderr), done.stderr
    assert says in done.stderr
    assert done.stdout == ""


@needs_fio
def test_json(cli: Cli) -> None:
    done = bench(cli, "--path", "disk/spill", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == ["paths", "depth", "fio_version", "throughput", "latency"]
    assert answer["paths"] == [{"path": "disk/spill", "size_bytes": (32 << 20) + DATA_OFFSET}]
    assert answer["depth"] == 2
    assert answer["fio_version"].startswith("fio-")
    assert [one["direction"] for one in answer["throughput"]] == DIRECTIONS
    for one in answer["throughput"]:
        assert list(one) == [
            "direction", "chunk_bytes", "depth", "bytes_per_second", "fio_bytes_per_second",
            "fio_summed_bytes_per_second",
            "ratio", "ratio_min", "ratio_max",
            "daemon_cpu_seconds_per_gb", "client_cpu_seconds_per_gb", "fio_cpu_seconds_per_gb", "pairs",
        ]  # fmt: skip
        assert one["chunk_bytes"] == 2 << 20
        assert 0 < one["ratio_min"] <= one["ratio"] <= one["ratio_max"]
        assert one["daemon_cpu_seconds_per_gb"] > 0
        assert len(one["pairs"]) == 2
        assert all(pair["bytes_per_second"] > 0 < pair["fio_bytes_per_second"] for pair in one["pairs"])
    (latency,) = answer["latency"]
    assert list(latency) == [
        "chunk_bytes", "fetches", "median_seconds", "p99_seconds", "fio_median_seconds", "fio_p99_seconds",
        "over_fio_seconds",
    ]  # fmt: skip
    assert 0 < latency["median_seconds"] <= latency["p99_seconds"]
    assert latency["fetches"] == 2 * 16
    assert cli.left_behind(["disk"]) == []
    assert list((cli.home / "disk").iterdir()) == []


@needs_fio
def test_table_of_two_paths_and_chunk_sizes(cli: Cli) -> None:
    arguments = ("--path", "disk,disk/b", "--size", "32MiB", "--chunk", "2MiB,4MiB", "--rounds", "1")
    done = bench(cli, *arguments, "--depth", "2")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ *(\d+) MiB +(\w+) +[\d.]+ ", done.stdout, re.MULTILINE)
    throughput = [(chunk, direction) for chunk in ("2", "4") for direction in DIRECTIONS]
    assert rows[:6] == throughput
    assert [chunk for chunk, _ in rows[6:]] == ["2", "4"]
    assert cli.left_behind(["disk"]) == []
    assert list((cli.home / "disk").iterdir()) == []


@needs_fio
def test_one_at_a_time(cli: Cli) -> None:
    done = bench(cli, "--path", "disk", "--size", "8MiB", "--chunk", "2MiB", "--depth", "1", "--rounds", "1")
    assert done.returncode == 0, done.stderr


@needs_fio
@pytest.mark.parametrize(("name", "begins"), [("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")])
def test_plot(cli: Cli, name: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the plot is NOT tested")
    done = bench(cli, "--path", "disk", *SMALL, "--plot", name)
    assert done.returncode == 0, done.stderr
    assert (cli.home / name).read_bytes().startswith(begins)


@needs_fio
def test_spill_file_that_exists_is_used_and_kept(cli: Cli) -> None:
    spill = cli.home / "disk" / "spill"
    spill.touch()
    size = DATA_OFFSET + (32 << 20)
    for _ in range(2):  # the second time it is one of ours
        done = bench(cli, "--path", spill, *SMALL)
        assert done.returncode == 0, done.stderr
        assert spill.stat().st_size == size
    # Not made larger by asking for more than it has.
    assert bench(cli, "--path", spill, *SMALL, "--size", "1GiB").returncode == 0
    assert spill.stat().st_size == size


@needs_fio
def test_ctrl_c(cli: Cli) -> None:
    running = cli.start("bench", "spill", "--path", "disk/spill", *SMALL, "--seconds", "3600")
    assert running.stdout is not None
    # The first line comes once something is measured; for an hour, there is none before it is stopped.
    while len(children_of(running.pid)) < 2:  # the daemon, and fio beside it
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGINT
    assert (out, errors) == ("", "")
    assert cli.left_behind(["disk"]) == []
    assert list((cli.home / "disk").iterdir()) == []


@needs_fio
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--path", "disk/foreign", *SMALL), "content that is not GreenBoost's"),
        (("--path", "none/spill", *SMALL), "none does not exist; create it"),
        (("--path", "/dev/null", *SMALL), "neither a file, a directory nor a block device"),
        (("--path", ",", *SMALL), "no path"),
        (("--path", "disk", "--size", "1EiB"), "unknown unit"),
        (("--path", "disk", *SMALL, "--chunk", "3MiB"), "power of two"),
        (("--path", "disk", *SMALL, "--chunk", "2MiB,1MiB"), "power of two"),
        (("--path", "disk", *SMALL, "--depth", "0"), "'0' is not a number from 1 on"),
        (("--path", "disk", *SMALL, "--depth", "300"), "more than 256"),
        (("--path", "disk", *SMALL, "--depth", "9"), "give 36.0 MiB or more"),
        (("--path", "disk", *SMALL, "--seconds", "nan"), "not a number of seconds"),
        (("--path", "disk", *SMALL, "--plot", "plot.pdf"), "neither .svg nor .png"),
        (("--path", "disk", *SMALL, "--plot", "none/plot.png"), "cannot be written"),
        ((), "--path"),
    ],
)
def test_refusals(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    (cli.home / "disk" / "foreign").write_bytes(FOREIGN)
    refused(bench(cli, *arguments), 2, says)
    assert (cli.home / "disk" / "foreign").read_bytes() == FOREIGN
    assert cli.left_behind(["disk"]) == []


def test_without_fio(cli: Cli) -> None:
    cli.environ["PATH"] = str(cli.tmp)
    refused(bench(cli, "--path", "disk", *SMALL), 1, "apt-get install fio")


@needs_fio
def test_without_matplotlib(cli: Cli) -> None:
    # A package of that name that cannot be found, and nothing else missing.
    (cli.home / "sitecustomize.py").write_text("import sys; sys.modules['matplotlib'] = None")
    cli.environ["PYTHONPATH"] += f":{cli.home}"
    refused(bench(cli, "--path", "disk", *SMALL, "--plot", "plot.png"), 1, "greenboost[bench]")
