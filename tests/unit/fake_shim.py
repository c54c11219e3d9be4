# SPDX-License-Identifier: GPL-2.0-or-later
"""A client that plays the shim's side of the protocol, for tests of the daemon.

It moves no chunks of its own accord: a test says what is in which slot and what to spill. What comes
over the wire is checked by the same code as in the daemon, so a test that wants to break the rules
sends raw packets.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from tierd.wire import (
    COUNTERS,
    PROTOCOL_VERSION,
    STATE_HEADER_BYTES,
    STATE_MAGIC,
    STATE_VERSION,
    Disconnected,
    Request,
    Sender,
)
from tierd.wire.connection import Connection

__all__ = ["FakeArena", "FakeShim", "connect_shim", "new_state"]


def new_state(chunks: int = 1024, *, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) -> int:
    """A state memfd with room for `chunks`; the caller owns it."""
    fd = os.memfd_create("state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, STATE_HEADER_BYTES + chunks)
    os.pwrite(fd, struct.pack("<IIQ", STATE_MAGIC, STATE_VERSION, chunks), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class FakeArena:
    """An arena as the shim has it: mapped."""

    def __init__(self, id: int, fd: int, chunk: int) -> None:
        self.id = id
        self.chunk = chunk
        size = os.fstat(fd).st_size
        self.slots = size // chunk
        self.memory = mmap.mmap(fd, size)
        os.close(fd)

    def write(self, slot: int, data: bytes) -> None:
        """Fill a slot, `data` repeated."""
        self.memory[slot * self.chunk : (slot + 1) * self.chunk] = (data * self.chunk)[: self.chunk]

    def read(self, slot: int) -> bytes:
        """The slot's bytes."""
        return self.memory[slot * self.chunk : (slot + 1) * self.chunk]

    def close(self) -> None:
        """Unmap it. May be repeated."""
        self.memory.close()


class FakeShim:
    """A shim's connection. `on_recall` is called with an arena's id before it is given back.

    Without `on_recall` a recall is refused. `answer_recall` is the error it is answered with after it.
    """

    def __init__(self, connection: Connection, state: int) -> None:
        self.connection = connection
        self.state = state
        self.welcome: dict[str, int] = {}
        self.chunk = 0
        self.key = ""
        self.arenas: dict[int, FakeArena] = {}
        self.on_recall: Callable[[int], Awaitable[None]] | None = None
        self.answer_recall = ""
        self.ended = trio.Event()

    async def hello(self, name: str, key: str = "") -> None:
        """Begin the session, or go on with the one that has the key. Raises RemoteError."""
        fields = {"v": PROTOCOL_VERSION, "role": "shim", "pid": os.getpid(), "name": name, "key": key}
        answer = await self.connection.call("hello", fields, [self.state])
        self.key = str(answer.fields["key"])
        self.welcome = {name: int(value) for name, value in answer.fields.items() if name != "key"}
        self.chunk = self.welcome["chunk"]

    async def call(self, name: str, **fields: object) -> dict[str, int | str]:
        """The answer's fields. Raises RemoteError; must carry no file descriptors."""
        if name == "fetch":
            fields = {"keep": 0} | fields
        answer = await self.connection.call(name, fields)
        assert not answer.fds
        return dict(answer.fields)

    async def arena(self) -> FakeArena:
        """Ask for an arena and map it. Raises RemoteError."""
        answer = await self.connection.call("arena")
        id = int(answer.fields["arena"])
        self.arenas[id] = FakeArena(id, answer.fds[0], self.chunk)
        return self.arenas[id]

    async def alloc(self, first: int, chunks: int, *, address: int = 0x7000_0000_0000) -> None:
        """An allocation of whole chunks. Raises RemoteError."""
        await self.call("alloc", first=first, chunks=chunks, bytes=chunks * self.chunk, address=address)

    def show(self, first: int, letters: bytes) -> None:
        """Write letters to the state map."""
        os.pwrite(self.state, letters, STATE_HEADER_BYTES + first)

    def count(self, **counters: int) -> None:
        """Set counters by name."""
        for name, value in counters.items():
            os.pwrite(self.state, struct.pack("<Q", value), 16 + 8 * COUNTERS.index(name))

    def close(self) -> None:
        """Be gone, as if killed."""
        self.connection.close()

    async def serve(self) -> None:
        """Take recalls until the daemon hangs up."""
        async with trio.open_nursery() as nursery:
            with suppress(Disconnected):
                while True:
                    nursery.start_soon(self._recalled, await self.connection.receive())
        self.ended.set()

    async def _recalled(self, request: Request) -> None:
        assert request.op.name == "recall"
        arena = request.uint("arena")
        if self.on_recall is None:
            await self.connection.refuse(request.id, "EBUSY", "this test gives nothing back")
            return
        await self.on_recall(arena)
        self.arenas.pop(arena).close()
        if self.answer_recall:
            await self.connection.refuse(request.id, self.answer_recall, "this test returned it")
        else:
            await self.connection.answer(request)


@asynccontextmanager
async def connect_shim(path: Path, *, chunks: int = 1024, name: str = "test") -> AsyncIterator[FakeShim]:
    """A FakeShim on the daemon's socket; its end is a closed socket without bye."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(os.fspath(path))
    state = new_state(chunks)
    try:
        async with (
            Connection(sock, me=Sender.SHIM, peer=Sender.DAEMON) as connection,
            trio.open_nursery() as nursery,
        ):
            shim = FakeShim(connection, state)
            nursery.start_soon(shim.serve)
            try:
                await shim.hello(name)
                yield shim
            finally:
                nursery.cancel_scope.cancel()
                for arena in shim.arenas.values():
                    arena.close()
    finally:
        os.close(state)
