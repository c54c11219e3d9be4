# SPDX-License-Identifier: GPL-2.0-or-later
"""Daemons that die under applications, for tests of re-attaching."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from tierd.config import Config
from tierd.daemon import serve
from tierd.wire import Sender
from tierd.wire.connection import Connection

from .daemon_harness import CHUNK, settings
from .fake_shim import FakeArena, FakeShim

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


def ledger_of(directory: Path) -> Path:
    return directory / "run" / "tierd.sock.ledger"


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
