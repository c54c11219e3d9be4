# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes connections: credentials, the hello, and what a control connection may ask.

A shim's requests are session.Session's affair, which the daemon hands in; so is what the control
requests do.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import trio

from .wire import PROTOCOL_VERSION, Disconnected, Request, Sender, WireError, close_fds
from .wire.connection import Connection

__all__ = ["Control", "ControlError", "Peer", "serve_connections"]

_log = logging.getLogger(__name__)

HELLO_PATIENCE = 10.0
"""Seconds from connecting to the hello."""
MAX_CONNECTIONS = 1024
_SO_PEERPIDFD = 77  # since Linux 6.5
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as the kernel vouches for it."""

    pid: int
    uid: int
    pidfd: int  #: readable once the process is gone; -1 where the kernel cannot say


class ControlError(Exception):
    """A control request that cannot be met; `name` is an errno name, the text is for people."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Control(Protocol):
    """What control requests do. Each raises ControlError."""

    def status(self) -> bytes:
        """The snapshot, as msgpack."""

    async def mount(self, directory: str, /) -> None:
        """Mount the view; returns once it is there."""

    async def unmount(self) -> None:
        """Unmount the view."""

    async def spill_add(self, request: Request, /) -> None:
        """Take a spill path into use, or call its drain off."""

    def spill_drain(self, path: str, /) -> object:
        """Begin to move what a spill path holds elsewhere."""

    async def spill_remove(self, path: str, /) -> None:
        """The same; returns once it is empty and closed."""

    def stop(self) -> None:
        """Begin to end the daemon."""


StartSession = Callable[[Connection, Request, Peer], Awaitable[None]]
"""Serves a shim's connection from its hello to its end, and owns the hello's file descriptors."""


async def serve_connections(listener: socket.socket, control: Control, session: StartSession) -> None:
    """Take connections on `listener` until cancelled, each in a task of its own.

    What goes wrong within a connection ends that one and is logged.
    """
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listener.fileno())
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                _log.error("a connection cannot be taken: %s", error.strerror)
                await trio.sleep(0.1)  # it stays readable, and would keep us from ending others
                continue
            if len(nursery.child_tasks) >= MAX_CONNECTIONS:
                _log.error("more than %d connections: one is turned away", MAX_CONNECTIONS)
                sock.close()
                continue
            nursery.start_soon(_contain, sock, control, session)


async def _contain(sock: socket.socket, control: Control, session: StartSession) -> None:
    try:
        async with Connection(sock, me=Sender.DAEMON, peer=Sender.CONTROL) as connection:
            with suppress(Disconnected):
                await _converse(sock, connection, control, session)
    except Exception:
        _log.exception("a connection ended by an error of the daemon's")


async def _converse(
    sock: socket.socket, connection: Connection, control: Control, session: StartSession
) -> None:
    peer = _peer_of(sock)
    try:
        hello = None
        try:
            with trio.move_on_after(HELLO_PATIENCE):
                hello = await connection.receive_hello()
            if hello is None:
                _log.warning("pid %d said no hello in %g s", peer.pid, HELLO_PATIENCE)
            elif hello.uint("v") != PROTOCOL_VERSION:
                close_fds(hello.fds)
                raise WireError(
                    f"v: this daemon speaks version {PROTOCOL_VERSION}, not {hello.uint('v')}",
                    name="EPROTONOSUPPORT",
                    re=hello.id,
                )
            elif connection.peer is Sender.SHIM:
                await session(connection, hello, peer)
            else:
                await connection.answer(hello)
                await _serve_control(connection, control, peer)
        except WireError as error:
            await connection.refuse(error.re, error.name, str(error))
    finally:
        if peer.pidfd >= 0:
            os.close(peer.pidfd)


def _peer_of(sock: socket.socket) -> Peer:
    pid, uid, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    try:
        return Peer(pid, uid, sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError:
        pass
    # Before Linux 6.5. Should the process be gone and its number be another's, closing its socket
    # still ends the session.
    try:
        return Peer(pid, uid, os.pidfd_open(pid))
    except OSError:
        return Peer(pid, uid, -1)


async def _serve_control(connection: Connection, control: Control, peer: Peer) -> None:
    trusted = peer.uid in (0, os.geteuid())
    while True:
        request = await connection.receive()
        name = request.op.name
        try:
            if name == "status":
                await _answer_status(connection, request, control.status())
                continue
            if not trusted:
                raise ControlError("EPERM", f"{name} is for the daemon's own user and root")
            if name == "mount":
                await control.mount(request.text("dir"))
            elif name == "unmount":
                await control.unmount()
            elif name == "spill_add":
                await control.spill_add(request)
            elif name == "spill_drain":
                control.spill_drain(request.text("path"))
            elif name == "spill_remove":
                await control.spill_remove(request.text("path"))
            elif name != "stop":
                raise ControlError("EISCONN", f"{name} was said already")
            await connection.answer(request)
            if name == "stop":
                control.stop()
        except ControlError as error:
            await connection.refuse(request.id, error.name, str(error))


async def _answer_status(connection: Connection, request: Request, snapshot: bytes) -> None:
    fd = os.memfd_create("greenboost-status", os.MFD_CLOEXEC)
    try:
        os.write(fd, snapshot)  # memory takes it whole
        await connection.answer(request, {"bytes": len(snapshot)}, [fd])
    finally:
        os.close(fd)
