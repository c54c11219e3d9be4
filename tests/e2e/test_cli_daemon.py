# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost daemon, status, mount, unmount and config check, as processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.cli_harness import TIERS, Cli, cli_with_socket, refused
from tierd.wire import connect


@pytest.fixture
def cli() -> Iterator[Cli]:
    with cli_with_socket() as cli:
        yield cli


def test_status(cli: Cli) -> None:
    with cli.serving(*TIERS) as daemon:
        text = cli("status")
        assert text.returncode == 0, text.stderr
        assert re.search(r"^ram +0 B +16\.0 MiB$", text.stdout, re.MULTILINE), text.stdout
        status = json.loads(cli("status", "--json").stdout)
        assert status["pid"] == daemon.pid
        assert status["tiers"]["ram"] == {"total_bytes": 16 << 20, "used_bytes": 0}
        assert status.pop("pressure")["level"] in ("calm", "low", "critical")
        named = json.loads(cli("status", "--json", "--socket", cli.environ["GREENBOOST_SOCKET"]).stdout)
        del named["pressure"]  # the system's memory may have changed
        assert named == status
    assert daemon.returncode == 0
    assert cli.left_behind() == []


def test_mount_and_unmount(cli: Cli) -> None:
    view = cli.home / "view"
    view.mkdir()
    with cli.serving(*TIERS) as daemon:
        assert cli("mount", "view").returncode == 0
        assert (view / "pid").read_text() == f"{daemon.pid}\n"
        assert json.loads(cli("status", "--json").stdout)["mountpoint"] == str(view)
        refused(cli("mount", "view"), 1, "mounted at")
        assert cli("unmount").returncode == 0
        assert os.listdir(view) == []
        refused(cli("unmount"), 1, "not mounted")
        refused(cli("mount", "none"), 1, "no such file or directory")
        refused(cli("mount", "\udcff"), 2, "not UTF-8")
        assert cli("mount", "view").returncode == 0
    assert daemon.returncode == 0
    assert os.listdir(view) == []
    assert cli.left_behind(["view"]) == []


def test_stopped_by_request(cli: Cli) -> None:
    with cli.serving(*TIERS) as daemon:
        with connect(cli.environ["GREENBOOST_SOCKET"]) as client:
            client.call("stop")
        assert daemon.wait(60) == 0
    assert cli.left_behind() == []


def test_reader_that_has_enough_is_no_error(cli: Cli) -> None:
    with cli.serving(*TIERS):
        command = cli.command("status", "--json")
        script = 'exec 3>&1; { "$@" 3>&-; echo "status $?" >&2; } | true'
        done = subprocess.run(
            ["sh", "-c", script, "sh", *command], env=cli.environ, capture_output=True, text=True, check=True
        )
    # Whether the pipe was closed before or after is chance; a traceback is wrong in both cases.
    assert done.stderr in ("status 141\n", "status 0\n")


@pytest.mark.parametrize(
    "command", [["status"], ["status", "--json"], ["mount", "view"], ["unmount"]], ids=" ".join
)
def test_without_daemon(cli: Cli, command: list[str]) -> None:
    refused(cli(*command), 1, "no GreenBoost daemon listens at")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[tierd]\nchnk = "2MiB"\n', "{file}:2: 'chnk' is not known in [tierd]; did you mean 'chunk'?"),
        ('[ram]\nlimit = "12XiB"\n', "{file}:2: '12XiB' has an unknown unit"),
        ('[[spill]]\nsize = "1GiB"\n', "{file}:1: [[spill]] needs a path"),
        ('[tierd]\nchunk = "2MiB"\n[ram]\nlimit = \n', "{file}:4: not TOML"),
        ('[[spill]]\npath = "/none/s"\nsize = "64MiB"\n', "{file}:2: "),
    ],
)
def test_refuses_configuration(cli: Cli, text: str, says: str) -> None:
    file = cli.home / "tierd.toml"
    file.write_text(text)
    says = says.format(file=file)
    refused(cli("daemon", "--config", file), 2, says)
    if "/none" not in text:  # what is there, the file alone does not tell
        refused(cli("config", "check", file), 2, says)
    assert cli.left_behind(["tierd.toml"]) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--spill", "none/s:8MiB"], "--spill: "),
        (["--spill", "s:8MiB", "--view", "none"], "no such file or directory"),
        (["--spill", "s:8MiB", "--socket", "none/deep/d.sock"], "none/deep"),
        (["--ram", "1"], "--ram: "),
        (["--config", "none"], "none: cannot be read"),
    ],
)
def test_refuses_flags(cli: Cli, flags: list[str], says: str) -> None:
    refused(cli("daemon", "--config", "/dev/null", *TIERS, *flags), 2, says)
    assert cli.left_behind() == []


def test_second_daemon_is_refused(cli: Cli) -> None:
    with cli.serving(*TIERS):
        refused(cli("daemon", "--config", "/dev/null", *TIERS), 2, cli.environ["GREENBOOST_SOCKET"])
        assert cli("status").returncode == 0


def test_config_check(cli: Cli) -> None:
    file = cli.home / "tierd.toml"
    file.write_text(
        '[tierd]\nchunk = "4MiB"\n[ram]\nlimit = "64MiB"\n[[spill]]\npath = "/x"\nsize = "1GiB"\n'
    )
    done = cli("config", "check", file)
    assert done.returncode == 0, done.stderr
    assert "chunk   4.0 MiB" in done.stdout
    assert "spill   /x (1.0 GiB)" in done.stdout
    refused(cli("config", "check", "none"), 2, "none: cannot be read")


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["daemon"], ["status"], ["doctor"], ["mount"], ["unmount"], ["config", "check"]],
    ids=" ".join,
)
def test_help_has_an_example(cli: Cli, command: list[str]) -> None:
    done = cli(*command, "--help")
    assert done.returncode == 0
    assert re.search(r"^examples?:\n  greenboost ", done.stdout, re.MULTILINE)
    assert "-fd" not in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["status", "extra"], ["mount"], ["config"], ["--bad"]]
)
def test_usage_errors(cli: Cli, arguments: list[str]) -> None:
    refused(cli(*arguments), 2, "--help'")
