# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole daemon in the test's own trio loop, small, and looked over when it is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import trio

from tierd import config, daemon, wire
from tierd.config import Config

__all__ = ["CHUNK", "MIB", "RawPeer", "running", "settings", "status", "wait_until"]

MIB = 1 << 20
CHUNK = 2 * MIB
_PATIENCE = 60.0
"""Seconds after which something hangs."""


def settings(directory: Path, *, ram: str, arena: str | None, extents: int) -> Config:
    """2 MiB chunks, `extents` of them in one spill file, or no T3."""
    flags: dict[str, object] = {
        "socket": str(directory / "run" / "tierd.sock"),
        "chunk": "2MiB",
        "ram": ram,
        "arena": arena,
    }
    if extents:
        flags["spill"] = [f"{directory / 'spill'}:{MIB + extents * CHUNK}"]
    return config.load(Path(os.devnull), {}, flags)


@asynccontextmanager
async def running(
    directory: Path,
    *,
    ram: str = "16MiB",
    arena: str | None = "4MiB",
    extents: int = 8,
    life_fd: int | None = None,
    stays: frozenset[str] = frozenset(),
) -> AsyncIterator[Config]:
    """A daemon that serves; at the end it is cancelled, and must have left nothing in `directory`.

    But what `stays`: a daemon that ends in order leaves what applications that still run go on with.
    """
    before = set(os.listdir(directory))
    conf = settings(directory, ram=ram, arena=arena, extents=extents)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(daemon.serve, conf, life_fd=life_fd))
        yield conf
        nursery.cancel_scope.cancel()
    assert set(os.listdir(directory)) == before | stays


async def status(conf: Config) -> dict[str, Any]:
    """The daemon's snapshot, as the command line gets it."""

    def ask() -> dict[str, object]:
        with wire.connect(conf.socket) as client:
            return client.call("status")

    answer: dict[str, Any] = await trio.to_thread.run_sync(ask)
    snapshot: dict[str, Any] = answer["snapshot"]
    return snapshot


async def wait_until(conf: Config, *, sessions: int) -> dict[str, Any]:
    """Wait until the daemon has `sessions` sessions; the snapshot then."""
    with trio.fail_after(_PATIENCE):
        while True:
            snapshot = await status(conf)
            if len(snapshot["sessions"]) == sessions:
                return snapshot


class RawPeer:
    """A socket to the daemon on which anything can be said."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(_PATIENCE)
        self.sock.connect(os.fspath(path))

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, message: object, fds: list[int] | None = None) -> None:
        """Send `message`: bytes as they are, anything else packed. The daemon may be gone already."""
        packet = message if isinstance(message, bytes) else msgpack.packb(message)
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.sock, [packet], fds or [])

    async def receive(self) -> dict[str, Any] | None:
        """The next message, its descriptors closed; None at the end."""

        def read() -> bytes:
            try:
                packet, fds, _, _ = socket.recv_fds(self.sock, 1 << 17, 8)
            except ConnectionResetError:
                return b""
            wire.close_fds(fds)
            return packet

        packet = await trio.to_thread.run_sync(read)
        return msgpack.unpackb(packet) if packet else None

    async def ask(self, message: object, fds: list[int] | None = None) -> dict[str, Any] | None:
        """send(), then receive()."""
        self.send(message, fds)
        return await self.receive()

    async def hello(self, role: str = "control") -> None:
        """Begin as a control connection."""
        assert await self.ask({"id": 1, "op": "hello", "v": 1, "role": role}) == {"re": 1}

    async def at_end(self) -> bool:
        """Whether the daemon has closed the connection; waits for what comes next."""
        return await self.receive() is None
