# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's beginning and end, and processes that are killed."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import pytest
import trio

from tests.unit.daemon_harness import CHUNK, MIB, RawPeer, running, settings, status, wait_until
from tests.unit.fake_shim import connect_shim
from tests.unit.view_harness import needs_fuse
from tierd import config, daemon, wire
from tierd.config import Config, SpillSpec
from tierd.daemon import MountError, SocketError, SpillStartupError, StartupError
from tierd.model import SpillOptions
from tierd.nvme import path
from tierd.nvme.crypt import CipherMissing
from tierd.session import Session
from tierd.wire import Request

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 30
"""Seconds after which a process hangs. Nothing is timed by it."""


def small(directory: Path) -> Config:
    return settings(directory, ram="16MiB", arena="4MiB", extents=8)


async def serve_until_started(conf: Config) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.serve, conf)
        nursery.cancel_scope.cancel()


# Beginning


async def cannot_start(conf: Config, kind: type[StartupError], text: str, directory: Path) -> None:
    before = files(directory)
    with pytest.raises(kind, match=text) as refusal:
        await daemon.serve(conf)
    assert "\n" not in str(refusal.value)
    assert files(directory) == before


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


async def test_a_spill_path_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = small(tmp_path)

    def at(name: str, size: int | None) -> Config:
        return replace(good, spill=(*good.spill, SpillSpec(tmp_path / name, size, "x.toml:7")))

    (tmp_path / "precious").write_text("keep me")
    for name, size, text in (
        ("no/such", 9 * MIB, "the directory .* does not exist"),
        ("new", None, "no size is given"),
        ("new", CHUNK, "too small"),
        ("new", 1 << 60, "spill path"),
        ("precious", 9 * MIB, "content that is not GreenBoost's"),
    ):
        await cannot_start(at(name, size), SpillStartupError, f"^x.toml:7: .*{text}", tmp_path)
    assert (tmp_path / "precious").read_text() == "keep me"

    def missing() -> None:
        raise CipherMissing("encryption needs a package; install it")

    monkeypatch.setattr(path, "Cipher", missing)
    secret = SpillSpec(tmp_path / "secret", 9 * MIB, "x.toml:7", SpillOptions(encrypt=True))
    refused = replace(good, spill=(*good.spill, secret))
    await cannot_start(refused, SpillStartupError, "^x.toml:7: .*secret: encryption needs", tmp_path)


async def test_a_socket_that_another_daemon_has(tmp_path: Path) -> None:
    async with running(tmp_path) as conf:
        other = replace(conf, spill=())
        await cannot_start(other, SocketError, "another daemon is listening there", tmp_path)
        assert (await status(conf))["sessions"] == []


@needs_fuse
async def test_a_view_that_cannot_be_mounted(tmp_path: Path) -> None:
    conf = replace(small(tmp_path), view=tmp_path / "missing")
    await cannot_start(conf, MountError, "^view [^ ]*missing: no such file", tmp_path)


@pytest.mark.parametrize("abstract", [False, True])
async def test_the_service_manager_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@greenboost-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        async with running(make(tmp_path / "d")) as conf:
            assert manager.recv(100) == b"READY=1"
            await trio.to_thread.run_sync(ask_stop, conf)
        assert manager.recv(100) == b"STOPPING=1"


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


def ask_stop(conf: Config) -> None:
    with wire.connect(conf.socket) as client:
        assert client.call("stop") == {}


async def test_a_service_manager_that_does_not_listen_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    await serve_until_started(small(tmp_path))
    assert "cannot be told READY=1" in caplog.text


# End


async def test_stop_ends_it_once_the_answer_is_sent(tmp_path: Path) -> None:
    conf = small(tmp_path)
    with trio.fail_after(_PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.serve, conf)
            async with connect_shim(conf.socket) as shim:
                await shim.alloc(0, 2)
                await shim.arena()
                await trio.to_thread.run_sync(ask_stop, conf)
                await shim.ended.wait()
    # The application, this process, lives: what it has stays for it.
    assert sorted(os.listdir(tmp_path)) == ["run", "spill"]


async def test_stopped_during_transfers(tmp_path: Path) -> None:
    stays = frozenset({"run", "spill"})  # the application, which is this process, lives
    async with running(tmp_path, arena="16MiB", stays=stays) as conf, trio.open_nursery() as nursery:

        async def move_for_ever(slot: int) -> None:
            with suppress(wire.Disconnected):
                while True:
                    await shim.call("spill", chunk=slot, arena=arena.id, slot=slot)
                    moved.set()
                    await shim.call("fetch", chunk=slot, arena=arena.id, slot=slot)

        moved = trio.Event()
        async with connect_shim(conf.socket) as shim:
            await shim.alloc(0, 8)
            arena = await shim.arena()
            for slot in range(4):
                nursery.start_soon(move_for_ever, slot)
            await moved.wait()
            await trio.to_thread.run_sync(ask_stop, conf)
            await shim.ended.wait()


async def test_a_private_daemon_ends_with_its_pipe_and_leaves_no_file_even_while_it_runs(
    tmp_path: Path,
) -> None:
    read, write = os.pipe()
    conf = small(tmp_path)
    with trio.fail_after(_PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(daemon.serve, conf, life_fd=read))
            assert os.listdir(tmp_path) == ["run"]
            os.close(write)
    os.close(read)
    assert os.listdir(tmp_path) == []


async def test_a_bug_in_one_session_ends_that_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Session, request: Request) -> None:
        raise ZeroDivisionError

    async with running(tmp_path) as conf, connect_shim(conf.socket) as well:
        await well.alloc(0, 1)
        monkeypatch.setattr(Session, "_drop", broken)
        async with connect_shim(conf.socket) as ill:
            await ill.alloc(0, 4)
            arena = await ill.arena()
            await ill.call("spill", chunk=0, arena=arena.id, slot=0)
            with pytest.raises(wire.Disconnected):
                await ill.call("drop", chunk=0)
        assert "ZeroDivisionError" in caplog.text
        snapshot = await wait_until(conf, sessions=1)
        assert snapshot["arenas"] == 0
        assert snapshot["tiers"]["nvme"]["used_bytes"] == 0
        await well.alloc(1, 1)


# The view


@needs_fuse
async def test_the_view_is_mounted_and_unmounted_on_request(tmp_path: Path) -> None:
    view = make(tmp_path / "view")

    def ask(conf: Config, name: str, **fields: object) -> None:
        with wire.connect(conf.socket) as client:
            client.call(name, **fields)

    def letters() -> str:
        (found,) = view.glob("sessions/1/allocations/*/map")
        return found.read_text()

    async with running(tmp_path) as conf, connect_shim(conf.socket) as shim:
        await shim.alloc(3, 4)
        shim.show(3, b"12v3")
        for _ in range(2):
            await trio.to_thread.run_sync(partial(ask, conf, "mount", dir=str(view)))
            assert (await status(conf))["mountpoint"] == str(view)
            assert await trio.to_thread.run_sync(letters) == "12v3\n"
            with pytest.raises(wire.RemoteError, match="is mounted at"):
                await trio.to_thread.run_sync(partial(ask, conf, "mount", dir=str(view)))
            await trio.to_thread.run_sync(ask, conf, "unmount")
            assert os.listdir(view) == []
        with pytest.raises(wire.RemoteError, match="not mounted"):
            await trio.to_thread.run_sync(ask, conf, "unmount")
        with pytest.raises(wire.RemoteError, match="missing"):
            await trio.to_thread.run_sync(partial(ask, conf, "mount", dir=str(tmp_path / "missing")))
        assert (await status(conf))["mountpoint"] is None
    view.rmdir()


@needs_fuse
async def test_the_configured_view_comes_and_goes_with_the_daemon(tmp_path: Path) -> None:
    view = make(tmp_path / "view")
    conf = replace(small(tmp_path), view=view)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.serve, conf)
        assert "tiers" in await trio.to_thread.run_sync(os.listdir, view)
        nursery.cancel_scope.cancel()
    assert os.listdir(view) == []


async def test_without_pyfuse3_only_the_view_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tierd.view", None)
    await cannot_start(replace(small(tmp_path), view=tmp_path), MountError, "pyfuse3", tmp_path)
    await serve_until_started(small(tmp_path))


# Processes that are killed


@contextmanager
def python(code: str, *arguments: str | Path, fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A Python process in its own session; at the end all that is left of that is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=fds,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(_PATIENCE)
        assert process.stdout is not None
        process.stdout.close()


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    assert select.select([stream], [], [], _PATIENCE)[0], "the process says nothing"
    return stream.readline().strip()


APPLICATION = """
    import os, sys, trio
    from pathlib import Path
    from tests.unit.fake_shim import connect_shim

    async def main():
        async with connect_shim(Path(sys.argv[1]), name="doomed") as shim:
            await shim.alloc(0, 10)
            arena = await shim.arena()
            await shim.arena()
            shim.count(launches=77)
            for chunk in range(5):
                await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
            if sys.argv[2] == "fork" and os.fork() == 0:
                import time; time.sleep(1000)  # and keeps the socket open
            print("ready", flush=True)
            while True:
                await shim.call("spill", chunk=9, arena=arena.id, slot=1)
                await shim.call("fetch", chunk=9, arena=arena.id, slot=1)

    trio.run(main)
"""


@pytest.mark.parametrize("kind", ["alone", "fork"])
async def test_a_killed_application_gives_everything_back_within_a_second(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path) as conf:
        with python(APPLICATION, conf.socket, kind) as process:
            assert await trio.to_thread.run_sync(line, process.stdout) == "ready"
            before = await wait_until(conf, sessions=1)
            assert before["arenas"] == 2
            assert before["tiers"]["nvme"]["used_bytes"] >= 5 * CHUNK
            killed = time.monotonic()
            process.kill()
            after = await wait_until(conf, sessions=0)
            assert time.monotonic() - killed < 1
            assert after["arenas"] == 0
            assert after["tiers"]["nvme"]["used_bytes"] == 0
            (ended,) = after["ended"]
            assert (ended["name"], ended["counters"]["launches"]) == ("doomed", 77)


DAEMON = """
    import functools, os, sys, trio
    from pathlib import Path
    from tests.unit.daemon_harness import settings
    from tierd import daemon

    async def main():
        conf = settings(Path(sys.argv[1]), ram="16MiB", arena="4MiB", extents=8)
        life = int(sys.argv[2]) if len(sys.argv) > 2 else None
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(daemon.serve, conf, life_fd=life))
            print("ready", flush=True)

    trio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with python(DAEMON, tmp_path) as process:
        assert await trio.to_thread.run_sync(line, process.stdout) == "ready"
        async with connect_shim(small(tmp_path).socket) as shim:
            await shim.alloc(0, 2)
            await shim.arena()
            process.send_signal(number)
            with trio.fail_after(_PATIENCE):
                await shim.ended.wait()
        assert await trio.to_thread.run_sync(process.wait, _PATIENCE) == 0
    # The application, this process, lives: what it has stays for it.
    assert sorted(os.listdir(tmp_path)) == ["run", "spill"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["open", "close"])
async def test_a_signal_while_paths_are_opened_or_closed(
    tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    daemon_that_signals_itself = """
        import os, signal, sys, trio
        from pathlib import Path
        from tests.unit.daemon_harness import settings
        from tierd import daemon
        from tierd.nvme.spillfile import SpillFile

        directory, moment, number = sys.argv[1:]

        def signal_in(name, before):
            real = getattr(SpillFile, name)
            def patched(*arguments, **keywords):
                if before:
                    os.kill(os.getpid(), int(number))
                result = real(*arguments, **keywords)
                if not before:
                    os.kill(os.getpid(), int(number))
                return result
            setattr(SpillFile, name, patched)

        signal_in("open", before=False)
        if moment == "close":
            signal_in("close", before=True)
        trio.run(daemon.serve, settings(Path(directory), ram="16MiB", arena="4MiB", extents=8))
    """
    with python(daemon_that_signals_itself, tmp_path, moment, str(int(number))) as process:
        await trio.to_thread.run_sync(process.wait, _PATIENCE)
    assert os.listdir(tmp_path) == []


async def test_after_sigkill_the_next_one_takes_over(tmp_path: Path) -> None:
    with python(DAEMON, tmp_path) as process:
        assert await trio.to_thread.run_sync(line, process.stdout) == "ready"
        process.kill()
        process.wait(_PATIENCE)
    assert sorted(os.listdir(tmp_path)) == ["run", "spill"]
    await serve_until_started(small(tmp_path))
    assert os.listdir(tmp_path) == ["run"]  # its directory was not made by this one
    os.rmdir(tmp_path / "run")


async def test_a_private_daemon_does_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    owner = """
        import os, subprocess, sys
        read, write = os.pipe()
        code, directory = sys.argv[1:]
        subprocess.run([sys.executable, "-c", code, directory, str(read)], pass_fds=[read])
    """
    with python(owner, textwrap.dedent(DAEMON), tmp_path) as process:
        assert await trio.to_thread.run_sync(line, process.stdout) == "ready"
        assert os.listdir(tmp_path) == ["run"]
        with RawPeer(small(tmp_path).socket) as peer:
            await peer.hello()
            process.kill()
            assert await peer.at_end()
        # Its output ends when it does.
        assert await trio.to_thread.run_sync(line, process.stdout) == ""
    assert os.listdir(tmp_path) == []


def test_the_default_configuration_makes_a_daemon(tmp_path: Path) -> None:
    conf = config.load(Path(os.devnull), {}, {"socket": str(tmp_path / "s"), "ram": "64MiB"})
    trio.run(serve_until_started, conf)
