# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line's side of the protocol: one blocking request at a time."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType

import msgpack

from . import codec
from .codec import Answer, RemoteError, WireError
from .packet import Disconnected, close_fds, receive_packet, send_packet
from .schema import OPS, PROTOCOL_VERSION, Sender

__all__ = ["PATIENCE", "Client", "NoDaemonError", "connect"]

PATIENCE = 30.0
"""Seconds for the daemon to answer: a mount or the end of a large daemon are the longest."""


class NoDaemonError(ConnectionError):
    """No daemon listens; the message names the socket and the reason."""


def connect(path: Path | str, *, timeout: float | None = PATIENCE) -> Client:
    """A control connection to the daemon at socket `path`.

    `timeout`, in seconds, is for every answer. Raises NoDaemonError when there is none, RemoteError
    when it refuses us.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(timeout)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            reason = error.strerror or str(error)
            raise NoDaemonError(f"no GreenBoost daemon listens at {path}: {reason}") from error
        client = Client(sock, path)
        client.call("hello", v=PROTOCOL_VERSION, role=Sender.CONTROL.value)
    except BaseException:
        sock.close()
        raise
    return client


class Client:
    """A control connection; a context manager. Owns the socket."""

    def __init__(self, sock: socket.socket, path: Path | str) -> None:
        self._sock = sock
        self._path = path
        self._next_id = 1

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be repeated."""
        self._sock.close()

    def call(self, name: str, **fields: object) -> dict[str, object]:
        """The answer's fields; for "status", {"snapshot": ...} as metrics.to_dict() makes it.

        Raises RemoteError when the daemon refuses, NoDaemonError when it is gone or silent, WireError
        when what is asked is not in the protocol.
        """
        op = OPS[Sender.CONTROL].get(name)
        if op is None:
            raise WireError(f"op: {name!r} is not a request of the command line")
        id = self._next_id
        self._next_id += 1
        try:
            send_packet(self._sock, codec.encode_request(op, id, fields))
            packet, fds = receive_packet(self._sock)
        except TimeoutError:
            raise NoDaemonError(f"the daemon at {self._path} does not answer") from None
        except Disconnected as error:
            raise NoDaemonError(f"the daemon at {self._path} is gone: {error}") from error
        try:
            answer: Answer = codec.answer_of(codec.unpack(packet), op, fds)
            if answer.re not in (id, 0):
                raise WireError(f"re: {answer.re} is not the request {id}")
            if answer.error is not None:
                raise RemoteError(answer.error, answer.message)
            if name == "status":
                # A snapshot grows with the sessions and does not fit a packet: it comes in a memfd.
                return {"snapshot": msgpack.unpackb(os.pread(fds[0], int(answer.fields["bytes"]), 0))}
            return dict(answer.fields)
        finally:
            close_fds(fds)
