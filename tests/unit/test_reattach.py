# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon that dies under its applications, and the next one: what is whose, byte for byte."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tierd import reattach
from tierd.arena import Arena, ArenaError, ArenaPool
from tierd.config import Config, SpillSpec
from tierd.daemon import MountError, SpillStartupError, StartupError, serve
from tierd.ledger import process_start
from tierd.nvme.spillfile import SpillFile
from tierd.relief import Relief
from tierd.wire import RemoteError, Sender, connect
from tierd.wire.connection import Connection

from .daemon_harness import CHUNK, MIB, settings, status, wait_until
from .fake_shim import FakeArena, FakeShim, new_state

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

ROOT = Path(__file__).parents[2]
_PATIENCE = 20.0

DAEMON = """
    import logging, os, sys, trio
    from dataclasses import replace
    from pathlib import Path
    from tests.unit.daemon_harness import settings
    from tierd import daemon
    from tierd.model import SpillOptions

    async def main():
        conf = settings(Path(sys.argv[1]), ram="16MiB", arena="4MiB", extents=8)
        options = SpillOptions(encrypt=sys.argv[2] == "True")
        conf = replace(conf, spill=tuple(replace(spec, options=options) for spec in conf.spill))
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.serve, conf)
            print("ready", flush=True)

    logging.basicConfig()
    trio.run(main)
"""


@contextmanager
def ready(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that has said so; killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def daemon(directory: Path, *, encrypt: bool = False) -> AbstractContextManager[subprocess.Popen[str]]:
    """A daemon that serves."""
    return ready(DAEMON, str(directory), str(encrypt))


@dataclass
class Application:
    """What a process has, from one daemon to the next."""

    state: int
    key: str = ""
    arenas: dict[int, int] = field(default_factory=dict)  # its own descriptors
    allocations: list[tuple[int, int]] = field(default_factory=list)
    extents: set[int] = field(default_factory=set)

    @asynccontextmanager
    async def connect(self, path: Path, *, key: str | None = None) -> AsyncIterator[FakeShim]:
        """Up to the hello."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(os.fspath(path))
        async with (
            Connection(sock, me=Sender.SHIM, peer=Sender.DAEMON) as connection,
            trio.open_nursery() as nursery,
        ):
            shim = FakeShim(connection, self.state)
            nursery.start_soon(shim.serve)
            try:
                await shim.hello("test", self.key if key is None else key)
                self.key = shim.key
                yield shim
            finally:
                nursery.cancel_scope.cancel()
                for arena in shim.arenas.values():
                    arena.close()

    async def arena(self, shim: FakeShim) -> FakeArena:
        answer = await shim.connection.call("arena")
        id = int(answer.fields["arena"])
        self.arenas[id] = os.dup(answer.fds[0])
        shim.arenas[id] = FakeArena(id, answer.fds[0], shim.chunk)
        return shim.arenas[id]

    async def alloc(self, shim: FakeShim, first: int, chunks: int) -> None:
        await shim.alloc(first, chunks)
        self.allocations.append((first, chunks))

    async def adopt(self, shim: FakeShim) -> None:
        for id, fd in self.arenas.items():
            await shim.connection.call("adopt", {"arena": id}, [fd])
            shim.arenas[id] = FakeArena(id, os.dup(fd), shim.chunk)

    async def resume(self, shim: FakeShim) -> set[int]:
        """Say what it has; what of that is lost."""
        await self.adopt(shim)
        for first, chunks in self.allocations:
            await shim.alloc(first, chunks)
        counted_on = os.memfd_create("extents")
        try:
            for chunk in self.extents:
                os.pwrite(counted_on, b"\1", chunk)
            answer = await shim.connection.call("resume", {}, [counted_on])
            lost = {chunk for chunk in self.extents if os.pread(counted_on, 1, chunk) == b"\0"}
        finally:
            os.close(counted_on)
        assert answer.fields["lost"] == len(lost)
        return lost

    @asynccontextmanager
    async def again(self, path: Path, *, lost: frozenset[int] = frozenset()) -> AsyncIterator[FakeShim]:
        async with self.connect(path) as shim:
            assert await self.resume(shim) == lost
            yield shim


@pytest.fixture
def application() -> Iterator[Application]:
    it = Application(new_state())
    yield it
    for fd in (it.state, *it.arenas.values()):
        os.close(fd)


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


@asynccontextmanager
async def running(directory: Path, conf: Config | None = None) -> AsyncIterator[Config]:
    """The next daemon, in this process; at its end, when nobody is left, nothing is."""
    conf = conf or settings(directory, ram="16MiB", arena="4MiB", extents=8)
    with trio.fail_after(_PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, conf)
            yield conf
            nursery.cancel_scope.cancel()
    assert files(directory) == []


def socket_of(directory: Path) -> Path:
    return settings(directory, ram="16MiB", arena="4MiB", extents=8).socket


def content(byte: int) -> bytes:
    """Not the same everywhere, which T3 would keep without an extent."""
    return bytes([byte]) * (CHUNK - 1) + b"\xff"


def put(arena: FakeArena, slot: int, byte: int) -> None:
    arena.memory[slot * CHUNK : (slot + 1) * CHUNK] = content(byte)


async def begin(application: Application, directory: Path, *, encrypt: bool = False) -> None:
    """Chunks 0 and 1 in T3, and 2, which one word fills; 3 and 4 in RAM. Then the daemon is killed."""
    with daemon(directory, encrypt=encrypt) as process:
        async with application.connect(socket_of(directory)) as shim:
            await application.alloc(shim, 0, 5)
            await application.alloc(shim, 7, 2)
            arena = await application.arena(shim)
            for chunk in range(2):
                put(arena, 0, chunk + 1)
                await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
            arena.write(0, b"\7")
            await shim.call("spill", chunk=2, arena=arena.id, slot=0)
            application.extents = {0, 1, 2}
            put(arena, 0, 3)
            put(arena, 1, 4)
            process.kill()
            await shim.ended.wait()


async def fetched(shim: FakeShim, chunk: int, slot: int = 1) -> bytes:
    arena = next(iter(shim.arenas.values()))
    await shim.call("fetch", chunk=chunk, arena=arena.id, slot=slot)
    return arena.read(slot)


async def test_it_goes_on_with_the_next_daemon(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    key = application.key
    async with running(tmp_path) as conf:
        before = await status(conf)
        assert before["spill"][0]["used_bytes"] == 2 * CHUNK
        async with application.again(conf.socket) as shim:
            assert shim.welcome["session"] == 1
            assert application.key == key
            (arena,) = shim.arenas.values()
            assert arena.read(0) == content(3)
            assert arena.read(1) == content(4)
            (session,) = (await status(conf))["sessions"]
            assert session["committed_chunks"] == 7
            assert await fetched(shim, 0) == content(1)
            assert await fetched(shim, 1) == content(2)
            assert await fetched(shim, 2) == b"\7" * CHUNK
            put(arena, 0, 9)
            await shim.call("spill", chunk=0, arena=arena.id, slot=0)
            assert await fetched(shim, 0) == content(9)
            with pytest.raises(RemoteError, match="allocated already"):
                await shim.alloc(4, 1)
            # No two arenas have one id.
            assert (await shim.arena()).id not in application.arenas
        after = await wait_until(conf, sessions=0)
        assert after["spill"][0]["used_bytes"] == 0
        assert after["arenas"] == 0


async def test_what_it_does_not_name_is_given_back(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    application.extents = {1}
    application.allocations = [(0, 5)]
    os.close(application.arenas.popitem()[1])
    async with running(tmp_path) as conf, application.again(conf.socket) as shim:
        snapshot = await status(conf)
        assert snapshot["spill"][0]["used_bytes"] == CHUNK
        assert snapshot["sessions"][0]["committed_chunks"] == 5
        assert snapshot["arenas"] == 0
        arena = await shim.arena()
        await shim.call("spill", chunk=0, arena=arena.id, slot=0)  # which T3 has no more
        with pytest.raises(RemoteError, match="no allocation"):
            await shim.call("free", first=7)
        await shim.call("free", first=0)


async def test_what_t3_does_not_have_is_lost_for_that_chunk_alone(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path)
    application.extents |= {3}
    async with running(tmp_path) as conf, application.again(conf.socket, lost=frozenset({3})) as shim:
        with pytest.raises(RemoteError) as refused:
            await fetched(shim, 3)
        assert refused.value.name == "ENOENT"
        assert await fetched(shim, 0) == content(1)


async def test_what_was_overwritten_meanwhile_is_an_error_of_its_owner(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path)
    spill = os.open(tmp_path / "spill", os.O_WRONLY)
    os.pwrite(spill, b"somebody else's", MIB)
    os.close(spill)
    async with running(tmp_path) as conf, application.again(conf.socket) as shim:
        with pytest.raises(RemoteError) as refused:
            await fetched(shim, 0)
        assert refused.value.name == "EIO"
        assert await fetched(shim, 1) == content(2)


async def test_newcomers_are_not_given_what_absent_ones_have(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path)
    other = Application(new_state())
    async with running(tmp_path) as conf, other.connect(conf.socket, key="") as newcomer:
        assert newcomer.welcome["session"] == 2
        arena = await newcomer.arena()
        with pytest.raises(RemoteError, match="the tiers have room for"):
            await newcomer.alloc(0, 10)
        await newcomer.alloc(0, 3)
        for chunk in range(3):
            put(arena, 0, 100 + chunk)
            await newcomer.call("spill", chunk=chunk, arena=arena.id, slot=0)
        async with application.again(conf.socket) as shim:
            for chunk in range(2):
                assert await fetched(shim, chunk) == content(chunk + 1)
            for chunk in range(3):
                assert await fetched(newcomer, chunk) == content(100 + chunk)
    os.close(other.state)


@pytest.mark.parametrize("key", ["0" * 32, "é"])
async def test_a_key_that_nobody_has_is_refused(tmp_path: Path, application: Application, key: str) -> None:
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        with pytest.RaisesGroup(pytest.RaisesExc(RemoteError, match="no such session of yours")):
            async with application.connect(conf.socket, key=key):
                pass
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)


STRANGER = """
    import sys, trio
    from pathlib import Path
    from tests.unit.fake_shim import new_state
    from tests.unit.test_reattach import Application

    async def main():
        async with Application(new_state()).connect(Path(sys.argv[1]), key=sys.argv[2]):
            pass

    trio.run(main)
"""


async def test_a_stranger_who_knows_the_key_is_refused(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        stranger = await trio.run_process(
            [sys.executable, "-c", textwrap.dedent(STRANGER), str(conf.socket), application.key],
            cwd=ROOT,
            capture_stderr=True,
            check=False,
        )
        assert b"EPERM" in stranger.stderr or b"no such session of yours" in stranger.stderr
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)


def plain_file(size: int) -> int:
    return os.open("/tmp", os.O_TMPFILE | os.O_RDWR)


def unsealed(size: int) -> int:
    fd = os.memfd_create("arena", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


def too_small(size: int) -> int:
    from tierd.arena import memfd

    return memfd(1, size // 2)


@pytest.mark.parametrize("make", [plain_file, unsealed, too_small])
async def test_what_cannot_be_an_arena_ends_the_session(
    tmp_path: Path, application: Application, make: object
) -> None:
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        async with application.connect(conf.socket) as shim:
            fd = make(4 * MIB)  # type: ignore[operator]
            with pytest.raises(RemoteError, match="cannot be adopted"):
                await shim.connection.call("adopt", {"arena": 1}, [fd])
            os.close(fd)
            await shim.ended.wait()
        assert (await wait_until(conf, sessions=0))["spill"][0]["used_bytes"] == 0


async def test_claims_beyond_what_was_admitted_end_the_session(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path)
    application.allocations.append((20, 1))
    async with running(tmp_path) as conf:
        async with application.connect(conf.socket) as shim:
            with pytest.raises(RemoteError, match="8 chunks are claimed, 7 were admitted"):
                await application.resume(shim)
            await shim.ended.wait()
        await wait_until(conf, sessions=0)


@pytest.mark.parametrize("op", ["vram", "spill"])
async def test_nothing_else_comes_before_resume(tmp_path: Path, application: Application, op: str) -> None:
    await begin(application, tmp_path)
    fields = {
        "vram": {"slots": 3, "bytes": 1},
        "spill": {"chunk": 3, "arena": 1, "slot": 0},
    }
    async with running(tmp_path) as conf, application.connect(conf.socket) as shim:
        with pytest.raises(RemoteError, match="resume has to be said before"):
            await shim.connection.call(op, fields[op])
        await shim.ended.wait()


DOOMED = """
    import os, sys, trio
    from pathlib import Path
    from tests.unit.fake_shim import connect_shim

    async def main():
        async with connect_shim(Path(sys.argv[1])) as shim:
            await shim.alloc(0, 6)
            arena = await shim.arena()
            for chunk in range(4):
                arena.memory[:8] = bytes([chunk + 1]) * 8
                await shim.call("spill", chunk=chunk, arena=arena.id, slot=0)
            print("ready", flush=True)
            await shim.ended.wait()
            print("alone", flush=True)
            await trio.sleep_forever()

    trio.run(main)
"""


def doomed(path: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """An application with 4 chunks in T3."""
    return ready(DOOMED, str(path))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_whoever_dies_without_a_daemon_gives_everything_back(
    tmp_path: Path, application: Application, when: str
) -> None:
    with daemon(tmp_path) as process, doomed(socket_of(tmp_path)) as dying:
        process.kill()
        process.wait()
        assert dying.stdout is not None
        assert dying.stdout.readline() == "alone\n"
        if when == "before":
            dying.kill()
            dying.wait()
        async with running(tmp_path) as conf:
            if when == "after":
                assert (await status(conf))["spill"][0]["used_bytes"] == 4 * CHUNK
                dying.kill()
                while (await status(conf))["spill"][0]["used_bytes"]:
                    pass
            async with application.connect(conf.socket) as shim:
                await shim.alloc(0, 12)


async def test_who_does_not_come_back_is_given_up(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reattach, "GRACE", 0)
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        while (await status(conf))["spill"][0]["used_bytes"]:
            pass
        with pytest.RaisesGroup(pytest.RaisesExc(RemoteError, match="no such session of yours")):
            async with application.connect(conf.socket):
                pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_one_daemon_after_the_other(
    tmp_path: Path, application: Application, number: signal.Signals
) -> None:
    path = socket_of(tmp_path)
    await begin(application, tmp_path)
    for turn in range(2):
        with daemon(tmp_path) as process:
            async with application.again(path) as shim:
                arena = next(iter(shim.arenas.values()))
                assert await fetched(shim, 0) == content(turn + 1)
                put(arena, 1, turn + 2)
                await shim.call("spill", chunk=0, arena=arena.id, slot=1)
                process.send_signal(number)
                await shim.ended.wait()
            process.wait()
    # One that dies before anybody is back loses nothing either.
    with daemon(tmp_path):
        pass
    async with running(tmp_path) as conf, application.again(conf.socket) as shim:
        assert await fetched(shim, 0) == content(3)
        assert await fetched(shim, 1) == content(2)


async def test_settings_that_would_not_do_wait_until_nobody_goes_on(
    tmp_path: Path, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Larger chunks, less RAM, and no spill path any more."""
    await begin(application, tmp_path)
    other = settings(tmp_path, ram="8MiB", arena="8MiB", extents=0)
    async with running(tmp_path, replace(other, chunk=2 * CHUNK)) as conf:
        assert "chunks stay of 2097152 bytes and arenas of 4194304, since 1 applications go on" in caplog.text
        before = await status(conf)
        assert (before["chunk_bytes"], before["arena_bytes"]) == (CHUNK, 4 * MIB)
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)
    async with running(tmp_path, replace(other, chunk=2 * CHUNK)) as conf:
        after = await status(conf)
        assert (after["chunk_bytes"], after["arena_bytes"], after["spill"]) == (2 * CHUNK, 8 * MIB, [])


async def test_what_was_encrypted_is_lost_and_not_written_down(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path, encrypt=True)
    with sqlite3.connect(ledger_of(tmp_path)) as database:
        assert database.execute("SELECT * FROM chunks").fetchall() == []
    database.close()
    async with running(tmp_path) as conf, application.again(conf.socket, lost=frozenset({0, 1, 2})) as shim:
        (arena,) = shim.arenas.values()
        assert arena.read(0) == content(3)
        await shim.call("spill", chunk=0, arena=arena.id, slot=0)
        assert await fetched(shim, 0) == content(3)


async def test_a_path_that_was_added_is_opened_again_or_removed(
    tmp_path: Path, application: Application
) -> None:
    added = tmp_path / "added"
    conf = settings(tmp_path, ram="16MiB", arena="4MiB", extents=0)

    def add() -> None:
        options = {"weight": 1000, "encrypt": 0, "daily_writes": 0, "deadline": 10000, "poll": "none"}
        with connect(conf.socket) as control:
            control.call("spill_add", path=str(added), size=MIB + 8 * CHUNK, force=0, **options)
            control.call("spill_remove", path=str(tmp_path / "spill"))

    with daemon(tmp_path) as process:
        await trio.to_thread.run_sync(add)
        async with application.connect(conf.socket) as shim:
            await application.alloc(shim, 0, 3)
            arena = await application.arena(shim)
            put(arena, 0, 1)
            await shim.call("spill", chunk=0, arena=arena.id, slot=0)
            application.extents = {0}
            process.kill()
            await shim.ended.wait()
    async with running(tmp_path, conf), application.again(conf.socket) as shim:
        assert await fetched(shim, 0) == content(1)
    assert not added.exists()
    with daemon(tmp_path) as process:
        await trio.to_thread.run_sync(add)
        with doomed(conf.socket):
            process.kill()
            process.wait()
    # Its application is gone before anybody follows.
    assert added.exists()
    async with running(tmp_path, conf):
        assert not added.exists()


async def test_nobody_waits_for_an_arena_of_one_that_is_not_back(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierd.tiers.RECALL_PATIENCE", math.inf)
    monkeypatch.setattr(reattach, "RECALL_PATIENCE", 0)
    with daemon(tmp_path) as process:
        async with application.connect(socket_of(tmp_path)) as shim:
            await application.alloc(shim, 0, 2)
            for _ in range(4):
                await application.arena(shim)
            process.kill()
            await shim.ended.wait()
    other = Application(new_state())
    async with running(tmp_path) as conf:
        async with other.connect(conf.socket, key="") as newcomer:
            await newcomer.alloc(0, 2)
            with pytest.raises(RemoteError, match="no other session gave an arena back"):
                await newcomer.arena()
        async with application.again(conf.socket):
            pass
    os.close(other.state)


async def leave_orphan(directory: Path) -> Path:
    """A spill file of a daemon that died, and of nobody else."""
    added = directory / "added"

    def add() -> None:
        options = {"weight": 1000, "encrypt": 0, "daily_writes": 0, "deadline": 10000, "poll": "none"}
        with connect(socket_of(directory)) as control:
            control.call("spill_add", path=str(added), size=MIB + 8 * CHUNK, force=0, **options)

    with daemon(directory) as process:
        await trio.to_thread.run_sync(add)
        process.kill()
        process.wait()
    return added


async def test_what_nobody_needs_is_removed_before_a_start_can_fail(tmp_path: Path) -> None:
    """It may be why there is no room."""
    added = await leave_orphan(tmp_path)
    with pytest.raises(SpillStartupError):
        await serve(in_vain(settings(tmp_path, ram="16MiB", arena="4MiB", extents=8), "spill"))
    assert not added.exists()


async def test_what_another_daemon_has_left_there_stays(tmp_path: Path) -> None:
    added = await leave_orphan(tmp_path)
    with SpillFile.open(str(added), None, CHUNK) as file:
        file.stays = True
    async with running(tmp_path):
        assert added.exists()
        added.unlink()


async def test_files_that_stay_are_named(
    tmp_path: Path, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever removes the ledger, as a reboot may, has to know of them."""
    caplog.set_level(logging.INFO)
    await begin(application, tmp_path)
    conf = settings(tmp_path, ram="16MiB", arena="4MiB", extents=8)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, conf)
        nursery.cancel_scope.cancel()
    assert f"{tmp_path / 'spill'} (17.0 MiB) stays for them" in caplog.text
    async with running(tmp_path), application.again(conf.socket):
        pass


async def test_a_path_goes_on_being_drained(tmp_path: Path, application: Application) -> None:
    options = {"weight": 1000, "encrypt": 0, "daily_writes": 0, "deadline": 10000, "poll": "none"}
    spill, added = str(tmp_path / "spill"), str(tmp_path / "added")

    def drain() -> None:
        with connect(socket_of(tmp_path)) as control:
            control.call("spill_add", path=added, size=MIB + 8 * CHUNK, force=0, **options)
            control.call("spill_drain", path=spill)

    with daemon(tmp_path) as process:
        await trio.to_thread.run_sync(drain)
        async with application.connect(socket_of(tmp_path)) as shim:
            process.kill()
            await shim.ended.wait()
    async with running(tmp_path) as conf, application.again(conf.socket):
        states = {path["path"]: path["state"] for path in (await status(conf))["spill"]}
        assert states == {spill: "draining", added: "active"}


def in_vain(conf: Config, what: str) -> Config:
    if what == "mount":
        return replace(conf, view=conf.socket.parent / "nowhere" / "view")
    if what == "ledger":
        with sqlite3.connect(ledger_of(conf.socket.parents[1])) as database:
            database.execute(
                "CREATE TRIGGER IF NOT EXISTS full BEFORE DELETE ON paths "
                "BEGIN SELECT RAISE(FAIL, 'full'); END"
            )
        database.close()
        return conf
    return replace(conf, spill=(*conf.spill, SpillSpec(conf.socket / "nowhere", 8 * MIB, "test")))


@pytest.mark.parametrize(
    ("what", "error"), [("mount", MountError), ("spill", SpillStartupError), ("ledger", StartupError)]
)
async def test_a_start_that_fails_leaves_everything_to_the_next(
    tmp_path: Path, application: Application, what: str, error: type[Exception]
) -> None:
    await begin(application, tmp_path)
    conf = settings(tmp_path, ram="16MiB", arena="4MiB", extents=8)
    for _ in range(2):
        with pytest.raises(error):
            await serve(in_vain(conf, what))
    if what == "ledger":
        with sqlite3.connect(ledger_of(tmp_path)) as database:
            database.execute("DROP TRIGGER full")
        database.close()
    async with running(tmp_path), application.again(conf.socket) as shim:
        assert await fetched(shim, 0) == content(1)
        assert await fetched(shim, 2) == b"\7" * CHUNK


@pytest.mark.parametrize("back", [False, True])
async def test_an_error_of_the_daemon_leaves_everything_to_the_next(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    await begin(application, tmp_path)
    conf = settings(tmp_path, ram="16MiB", arena="4MiB", extents=8)
    fails = trio.Event()

    async def fail(self: Relief) -> None:
        await fails.wait()
        raise ZeroDivisionError

    async def use() -> None:
        if back:
            async with application.again(conf.socket) as shim:
                fails.set()
                await shim.ended.wait()
        fails.set()

    with monkeypatch.context() as patch:
        patch.setattr(Relief, "run", fail)
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, conf)
                nursery.start_soon(use)
    async with running(tmp_path), application.again(conf.socket) as shim:
        assert await fetched(shim, 0) == content(1)


async def test_who_breaks_off_before_resume_may_try_again(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        for _ in range(2):
            async with application.connect(conf.socket) as shim:
                await application.adopt(shim)
                await application.alloc(shim, 0, 5)
                application.allocations.pop()
        snapshot = await wait_until(conf, sessions=0)
        assert snapshot["spill"][0]["used_bytes"] == 2 * CHUNK
        assert snapshot["ended"] == []
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)


async def test_a_second_try_waits_for_the_first_to_end(tmp_path: Path, application: Application) -> None:
    """As seen by the daemon: the shim has closed that, and is not known to have."""
    await begin(application, tmp_path)
    waited = trio.Event()
    async with running(tmp_path) as conf:

        async def again() -> None:
            async with application.again(conf.socket) as shim:
                assert await fetched(shim, 0) == content(1)
            waited.set()

        async with trio.open_nursery() as nursery, application.connect(conf.socket):
            nursery.start_soon(again)
            await trio.testing.wait_all_tasks_blocked()
            assert not waited.is_set()
        assert waited.is_set()


async def test_who_breaks_off_and_is_not_waited_for_any_more_is_given_up(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reattach, "GRACE", 0.2)
    over = trio.Event()
    real = reattach.Absentees.wait

    async def wait(self: reattach.Absentees) -> None:
        await real(self)
        over.set()

    monkeypatch.setattr(reattach.Absentees, "wait", wait)
    await begin(application, tmp_path)
    async with running(tmp_path) as conf:
        async with application.connect(conf.socket):
            await over.wait()
            assert (await status(conf))["spill"][0]["used_bytes"] == 2 * CHUNK
        while (await status(conf))["spill"][0]["used_bytes"]:
            pass


async def test_want_of_memory_is_not_the_end(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(application, tmp_path)

    def adopt(self: ArenaPool, id: int, fd: int) -> Arena:
        os.close(fd)
        raise ArenaError("no memory")

    async with running(tmp_path) as conf:
        with monkeypatch.context() as patch:
            patch.setattr(ArenaPool, "adopt", adopt)
            async with application.connect(conf.socket) as shim:
                with pytest.raises(RemoteError) as refused:
                    await application.adopt(shim)
                assert refused.value.name == "ENOMEM"
                await shim.ended.wait()
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)


async def test_all_sessions_of_a_process_go_on(tmp_path: Path, application: Application) -> None:
    """One a device."""
    other = Application(new_state())
    with daemon(tmp_path) as process:
        async with application.connect(socket_of(tmp_path)) as one, other.connect(socket_of(tmp_path)) as two:
            for it, shim, byte in ((application, one, 1), (other, two, 2)):
                await it.alloc(shim, 0, 3)
                arena = await it.arena(shim)
                put(arena, 0, byte)
                await shim.call("spill", chunk=0, arena=arena.id, slot=0)
                it.extents = {0}
            process.kill()
            await one.ended.wait()
            await two.ended.wait()
    async with (
        running(tmp_path) as conf,
        other.again(conf.socket) as two,
        application.again(conf.socket) as one,
    ):
        assert await fetched(one, 0) == content(1)
        assert await fetched(two, 0) == content(2)
    for fd in (other.state, *other.arenas.values()):
        os.close(fd)


def test_a_process_lives_as_long_as_one_of_its_threads() -> None:
    program = "import ctypes, sys, threading; "
    program += "threading.Thread(target=sys.stdin.read).start(); print(flush=True); "
    program += "ctypes.CDLL(None).syscall(60, 0)"  # exit(2), of the first thread alone
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        stat = Path(f"/proc/{process.pid}/stat")
        while ") Z " not in stat.read_text():
            pass
        assert process_start(process.pid) > 0
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_start(process.pid) == 0


def ledger_of(directory: Path) -> Path:
    return directory / "run" / "tierd.sock.ledger"


async def test_a_ledger_of_another_version_is_said_to_be_one(
    tmp_path: Path, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    await begin(application, tmp_path)
    assert ledger_of(tmp_path).stat().st_mode & 0o077 == 0
    with sqlite3.connect(ledger_of(tmp_path)) as database:
        database.execute("UPDATE daemon SET version = 1")
    database.close()
    async with running(tmp_path) as conf:
        assert "is of another version of GreenBoost (1, this one writes 2)" in caplog.text
        assert (await status(conf))["spill"][0]["used_bytes"] == 0


async def test_a_ledger_whose_chunks_cannot_be_read(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    with sqlite3.connect(ledger_of(tmp_path)) as database:
        database.execute("DROP TABLE chunks")
    database.close()
    async with running(tmp_path) as conf, application.again(conf.socket, lost=frozenset({0, 1, 2})) as shim:
        (arena,) = shim.arenas.values()
        assert arena.read(0) == content(3)


async def test_a_ledger_of_another_boot(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(application, tmp_path)
    boot = tmp_path / "run" / "boot_id"
    boot.write_text("another")
    monkeypatch.setattr("tierd.ledger._BOOT", boot)
    async with running(tmp_path) as conf:
        assert (await status(conf))["spill"][0]["used_bytes"] == 0
        boot.unlink()


@pytest.mark.parametrize("damage", ["garbage", "empty", "foreign", "readable", "readable log"])
async def test_a_ledger_that_is_none(tmp_path: Path, application: Application, damage: str) -> None:
    await begin(application, tmp_path)
    ledger = ledger_of(tmp_path)
    if damage == "readable log":
        ledger.with_name(f"{ledger.name}-wal").chmod(0o644)
    elif damage != "readable":
        ledger.with_name(f"{ledger.name}-wal").unlink()  # from which it would be mended
    if damage == "garbage":
        ledger.write_bytes(struct.pack("<Q", 7) * 10000)
    elif damage == "empty":
        ledger.write_bytes(b"")
    elif damage == "readable":
        ledger.chmod(0o644)
    elif damage == "foreign":
        ledger.unlink()
        ledger.symlink_to("/etc/passwd")
    async with running(tmp_path) as conf:
        with pytest.RaisesGroup(pytest.RaisesExc(RemoteError, match="no such session of yours")):
            async with application.connect(conf.socket):
                pass
        with suppress(FileNotFoundError):
            assert not ledger.is_symlink()
        async with Application(application.state).connect(conf.socket) as shim:
            await shim.alloc(0, 1)
