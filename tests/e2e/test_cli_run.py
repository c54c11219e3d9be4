# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost run with real daemons, over commands that speak the shim's protocol."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.cli_harness import Cli, wait_gone
from tierd.wire import COUNTERS, connect

CHUNK = 2 << 20
TIERS = ("--ram", "16MiB", "--chunk", "2MiB", "--arena", "4MiB")

APPLICATION = """
import os, sys, trio
from pathlib import Path
from tests.unit.fake_shim import connect_shim

async def main():
    async with connect_shim(Path(os.environ["GREENBOOST_SOCKET"]), name="app") as shim:
        await shim.call("vram", slots=4, bytes=4 * shim.chunk)
        await shim.alloc(0, 6)
        arena = await shim.arena()
        for chunk in range(4):
            arena.write(0, bytes([chunk + 1]))
            await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
        await shim.call("fetch", chunk=2, arena=arena.id, slot=1)
        assert arena.read(1)[:2] == b"\\3\\3"
        shim.show(0, b"332312")
        shim.count(chunk_hits=10, chunk_stalls=2, stall_ns=1_500_000_000, h2d_bytes=5 << 20)
        await shim.call("memory")

for _ in range(int(sys.argv[1])):
    trio.run(main)
"""

WAITER = """
import os, signal, sys
seen = []
def say(*words):
    # Not print(): a handler may run within another one's, whose buffer lets nobody in twice.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def note(number, frame):
    seen.append(signal.Signals(number).name)
    say(seen[-1])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, note)
def end(number, frame):
    say(*seen)
    sys.exit(9)
signal.signal(signal.SIGUSR1, end)
say(os.environ["GREENBOOST_SOCKET"], os.getpid())
while True:
    signal.pause()
"""


@pytest.fixture
def cli() -> Iterator[Cli]:
    # pytest's own directories are too deep for a socket.
    with tempfile.TemporaryDirectory(prefix="gb-") as home:
        yield Cli(Path(home))


def test_a_deep_temporary_directory_is_no_obstacle(cli: Cli) -> None:
    deep = cli.tmp / ("d" * 100)
    deep.mkdir()
    done = cli("run", "--", "printenv", "GREENBOOST_SOCKET", environ={"TMPDIR": str(deep)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/tmp/greenboost-")
    assert not Path(done.stdout.strip()).parent.exists()


def python(source: str, *arguments: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", source, *arguments)


# The command and its surroundings


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_exit_status_is_the_commands(cli: Cli, script: str, status: int) -> None:
    done = cli("run", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr == "greenboost: no process of the command used the GPU\n"
    assert cli.left_behind() == []


def test_the_commands_own_options_are_left_alone(cli: Cli) -> None:
    for arguments in (("--", "echo", "--json", "x", "--"), ("echo", "--json", "x", "--")):
        assert cli("run", *arguments).stdout == "--json x --\n"


def test_environment(cli: Cli) -> None:
    report = "import os, json; print(json.dumps(dict(os.environ)))"
    done = cli("run", "--vram", "80%", *python(report), environ={"LD_PRELOAD": str(cli.driver)})
    environ = json.loads(done.stdout)
    assert environ["LD_PRELOAD"] == f"{cli.shim} {cli.driver}"
    assert environ["GREENBOOST_CUDA_DRIVER"] == str(cli.driver)
    assert environ["GREENBOOST_VRAM"] == "80%"
    assert environ["GREENBOOST_SOCKET"].startswith(str(cli.tmp))
    done = cli("run", "--vram", "1.5GiB", *python(report))
    assert json.loads(done.stdout)["GREENBOOST_VRAM"] == str(3 << 29)
    done = cli("run", *python(report), environ={"GREENBOOST_VRAM": "2GiB"})
    assert json.loads(done.stdout)["GREENBOOST_VRAM"] == str(2 << 30)
    assert "GREENBOOST_VRAM" not in json.loads(cli("run", *python(report)).stdout)


def test_private_daemon_is_private(cli: Cli) -> None:
    look = 'd=$(dirname "$GREENBOOST_SOCKET"); stat -c "%a %u" "$d"; ls "$d"'
    done = cli("run", *TIERS, "--", "sh", "-c", look)
    assert done.stdout == f"700 {os.geteuid()}\ntierd.sock\n"
    assert cli.left_behind() == []


def test_file_descriptors_and_signals_are_as_before(cli: Cli) -> None:
    look = """if True:
        import os, signal
        print(sorted(os.listdir("/proc/self/fd")), signal.pthread_sigmask(signal.SIG_BLOCK, []))
        print([signal.getsignal(number) for number in range(1, 32)])
    """
    bare = subprocess.run(
        [sys.executable, "-c", look], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert cli("run", *python(look)).stdout == bare.stdout


# The figures


def test_figures(cli: Cli) -> None:
    done = cli("run", *TIERS, "--spill", "spill:32MiB", "--json", "out.json", *python(APPLICATION, "1"))
    assert done.returncode == 0, done.stderr
    figures = json.loads((cli.home / "out.json").read_text())
    keys = "command status seconds private_daemon paging pins chunk_bytes chunk_source tiers"
    keys += " spill sessions total"
    assert list(figures) == keys.split()
    assert figures["command"][0] == sys.executable
    assert (figures["status"], figures["private_daemon"], figures["chunk_bytes"]) == (0, True, CHUNK)
    assert figures["seconds"] > 0
    (session,) = figures["sessions"]
    assert session["running"] is False
    assert session["name"] == "app"
    assert session["peak_chunks"] == 6
    assert session["nvme_written_bytes"] == 4 * CHUNK
    assert session["nvme_read_bytes"] == CHUNK
    assert session["stall_seconds"] == 1.5
    assert session["counters"]["chunk_hits"] == 10
    assert set(figures["total"]["counters"]) == set(COUNTERS)
    assert figures["total"]["nvme_written_bytes"] == 4 * CHUNK
    assert "app (pid " in done.stderr
    assert "1.5 s of it stalled" in done.stderr
    assert cli.left_behind(["out.json"]) == []


def test_several_processes_have_a_part_each_and_a_sum(cli: Cli) -> None:
    done = cli("run", *TIERS, "--spill", "spill:32MiB", "--json", "out.json", *python(APPLICATION, "2"))
    assert done.returncode == 0, done.stderr
    figures = json.loads((cli.home / "out.json").read_text())
    assert len(figures["sessions"]) == 2
    assert figures["total"]["counters"]["chunk_hits"] == 20
    assert figures["total"]["nvme_read_bytes"] == 2 * CHUNK
    assert done.stderr.count("app (pid ") == 2


# Signals


@contextmanager
def waiting(cli: Cli, *flags: str) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """`run` with WAITER under it: the process, the daemon's socket and the command's pid."""
    with cli.start("run", *flags, *python(WAITER)) as process:
        assert process.stdout is not None
        try:
            socket, pid = process.stdout.readline().split()
            yield process, Path(socket), int(pid)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_signals_are_passed_on(cli: Cli, number: signal.Signals) -> None:
    with waiting(cli) as (process, _, _):
        assert process.stdout is not None
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 9
    assert cli.left_behind() == []


def test_ctrl_c_in_a_terminal_comes_once(cli: Cli) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "r+b", buffering=0) as screen:
        # setsid -c makes it the controlling terminal of what it becomes.
        run = subprocess.Popen(
            ["setsid", "-c", *cli.command("run", *python(WAITER))],
            env=cli.environ,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        said = b""

        def read_until(what: bytes) -> None:
            nonlocal said
            while what not in said:
                said += screen.read(1000)

        read_until(b"tierd.sock")
        screen.write(b"\x03")
        read_until(b"SIGINT\r\n")
        # Pending signals are taken lowest number first: a second SIGINT would come before this.
        run.send_signal(signal.SIGUSR1)
        read_until(b"used the GPU")
        assert run.wait(60) == 9
    assert said.count(b"SIGINT") == 2, said  # when it came, and in the list at the end
    assert cli.left_behind() == []


def test_killed_run_takes_its_daemon_and_its_command_along(cli: Cli) -> None:
    view = cli.home / "view"
    view.mkdir()
    with waiting(cli, *TIERS, "--spill", "spill:32MiB", "--view", "view") as (process, socket, pid):
        with connect(socket) as client:
            snapshot = client.call("status")["snapshot"]
        assert isinstance(snapshot, dict)
        assert snapshot["mountpoint"] == str(view)
        assert (view / "chunk_bytes").read_text() == f"{CHUNK}\n"
        process.kill()
        wait_gone(snapshot["pid"])
        wait_gone(pid)
    assert os.listdir(view) == []
    assert cli.left_behind(["view"]) == []


def test_killed_daemon_does_not_take_the_command_along(cli: Cli) -> None:
    with waiting(cli, *TIERS, "--spill", "spill:32MiB") as (process, socket, _):
        with connect(socket) as client:
            snapshot = client.call("status")["snapshot"]
        assert isinstance(snapshot, dict)
        os.kill(snapshot["pid"], signal.SIGKILL)
        wait_gone(snapshot["pid"])
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 9
        assert process.stderr is not None
        assert "no figures: " in process.stderr.read()
    assert cli.left_behind() == []


# The running daemon


def test_uses_the_running_daemon(cli: Cli) -> None:
    socket = cli.environ["GREENBOOST_SOCKET"] = str(cli.home / "d.sock")
    spill = f"{cli.home}/spill:32MiB"
    with cli.serving(*TIERS, "--spill", spill) as daemon:
        for number in (1, 2):
            done = cli("run", "--json", "out.json", *python(APPLICATION, "1"))
            assert done.returncode == 0, done.stderr
            figures = json.loads((cli.home / "out.json").read_text())
            assert figures["private_daemon"] is False
            assert [session["id"] for session in figures["sessions"]] == [number]
        assert cli("run", "--", "printenv", "GREENBOOST_SOCKET").stdout == f"{socket}\n"
        own = cli("run", *TIERS, "--", "printenv", "GREENBOOST_SOCKET").stdout
        assert own.startswith(str(cli.tmp))
        refused = cli("run", "--vram", "6MiB", "--", "true")
        assert refused.returncode == 2
        assert "at least 4" in refused.stderr
    assert daemon.returncode == 0
    assert cli.left_behind(["out.json"]) == []


# Refusals


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["run"], 2, "the following arguments are required: COMMAND"),
        (["run", "--"], 2, "the following arguments are required: COMMAND"),
        (["run", "--vrma", "1GiB", "--", "true"], 2, "--vrma"),
        (["run", "--vram", "lots", "--", "true"], 2, "--vram: 'lots' is not a size"),
        (["run", "--vram", "120%", "--", "true"], 2, "--vram: '120%' is more than the whole"),
        (
            ["run", "--vram", "6MiB", "--chunk", "2MiB", "--", "true"],
            2,
            "--vram: 6MiB holds 3 chunks of 2.0 MiB",
        ),
        (["run", "--ram", "12XiB", "--", "true"], 2, "--ram: '12XiB' has an unknown unit"),
        (["run", "--ram", "2MiB", "--chunk", "2MiB", "--", "true"], 2, "--ram: 2.0 MiB of RAM is too little"),
        (["run", "--chunk", "3MiB", "--", "true"], 2, "--chunk: "),
        (["run", *TIERS, "--spill", "s:1", "--", "true"], 2, "--spill: "),
        (["run", *TIERS, "--spill", "none/s:8MiB", "--", "true"], 2, "--spill: "),
        (["run", *TIERS, "--spill", "/dev/null:8MiB", "--", "true"], 2, "--spill: "),
        (["run", *TIERS, "--spill", "s:8MiB", "--spill", "none/s:8MiB", "--", "true"], 2, "--spill: "),
        (["run", *TIERS, "--spill", "s:900TiB", "--", "true"], 2, "--spill: "),
        (
            ["run", *TIERS, "--spill", "s:8MiB", "--view", "none", "--", "true"],
            2,
            "no such file or directory",
        ),
        (["run", *TIERS, "--spill", "s:8MiB", "--view", "/etc", "--", "true"], 2, "not empty"),
        (["run", "--json", "none/out.json", "--", "true"], 2, "--json: "),
        (["run", "--json", "tmp", "--", "true"], 2, "--json: "),
        (["run", "--driver", "none", "--", "true"], 2, "--driver: there is no file none"),
        (["run", "--driver", "shim.so", "--", "true"], 2, "GreenBoost's own shim"),
        (["run", "--socket", "none", "--", "true"], 2, "--socket: no GreenBoost daemon"),
        (["run", "--socket", "none", "--ram", "1GiB", "--", "true"], 2, "--socket"),
        (["run", "--", "no-such-command"], 127, "no-such-command: no such command"),
        (["run", "--", "/etc/passwd"], 126, "/etc/passwd: permission denied"),
    ],
)
def test_refuses(cli: Cli, arguments: list[str], status: int, says: str) -> None:
    done = cli(*arguments)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"greenboost: [^\n]+\n", done.stderr), done.stderr
    assert says in done.stderr
    assert cli.left_behind() == []


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("GREENBOOST_SHIM", "none", "GREENBOOST_SHIM: there is no file none"),
        ("GREENBOOST_CUDA_DRIVER", "none", "GREENBOOST_CUDA_DRIVER: there is no file none"),
        ("GREENBOOST_VRAM", "lots", "GREENBOOST_VRAM: 'lots' is not a size"),
        ("GREENBOOST_RAM", "lots", "GREENBOOST_RAM: 'lots' is not a size"),
        ("GREENBOOST_CHUNK", "1", "GREENBOOST_CHUNK: "),
    ],
)
def test_refuses_variables(cli: Cli, variable: str, value: str, says: str) -> None:
    done = cli("run", "--", "true", environ={variable: value})
    assert done.returncode == 2
    assert re.fullmatch(r"greenboost: [^\n]+\n", done.stderr), done.stderr
    assert says in done.stderr
    assert cli.left_behind() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: a file system without O_DIRECT is NOT tested")
def test_refuses_a_file_system_without_direct_io(cli: Cli) -> None:
    disk = cli.home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", disk], check=True)
    try:
        done = cli("run", *TIERS, "--spill", "disk/s:8MiB", "--", "true")
        assert done.returncode == 2
        assert re.fullmatch(r"greenboost: --spill: [^\n]*O_DIRECT[^\n]*\n", done.stderr), done.stderr
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)
    assert cli.left_behind(["disk"]) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: this refusal is NOT tested")
def test_refuses_a_spill_path_that_is_not_writable(cli: Cli) -> None:
    closed = cli.home / "closed"
    closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    done = cli("run", *TIERS, "--spill", "closed/s:8MiB", "--", "true")
    assert done.returncode == 2
    assert "--spill: " in done.stderr
    assert cli.left_behind(["closed"]) == []


def test_existing_spill_file_of_somebody_else_is_kept(cli: Cli) -> None:
    """What is not ours is refused or left as it is, never removed."""
    precious = cli.home / "precious"
    precious.write_bytes(b"photos" * 1000)
    done = cli("run", *TIERS, "--spill", "precious:8MiB", "--", "true")
    assert done.returncode == 2, done.stderr
    assert precious.read_bytes() == b"photos" * 1000
    assert cli.left_behind(["precious"]) == []
