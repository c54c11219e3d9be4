# SPDX-License-Identifier: GPL-2.0-or-later
"""One connection in trio: requests in both directions over one socket, answered in any order."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

import trio

from . import codec
from .codec import Answer, RemoteError, Request, WireError
from .packet import Disconnected, close_fds, receive_packet, send_packet
from .schema import MAX_UNDER_WAY, OPS, Op, Sender

__all__ = ["Connection"]

_Received = TypeVar("_Received")


class _Call:
    """A request of ours that waits for its answer."""

    __slots__ = ("abandoned", "answer", "done", "op")

    def __init__(self, op: Op) -> None:
        self.op = op
        self.done = trio.Event()
        self.answer: Answer | None = None
        self.abandoned = False


class Connection:
    """A SOCK_SEQPACKET socket on which `me` and `peer` ask and answer. Owns the socket.

    One task calls receive() in a loop; any task may call answer(), refuse() and call(). Packets are
    sent whole by the kernel, so senders need no lock.
    """

    def __init__(self, sock: socket.socket, *, me: Sender, peer: Sender) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._me = me
        self._peer = peer
        self._calls: dict[int, _Call] = {}
        self._next_id = 1
        self._closed = False

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; calls under way end in Disconnected. May be repeated."""
        if self._closed:
            return
        self._closed = True
        trio.lowlevel.notify_closing(self._sock.fileno())
        self._sock.close()
        self._end_calls()

    def _end_calls(self) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.done.set()

    @property
    def peer(self) -> Sender:
        """Whose requests receive() understands."""
        return self._peer

    async def receive_hello(self) -> Request:
        """The first request, which must be a hello. It says whose requests follow: see `peer`.

        Raises as receive() does.
        """
        message, fds = await self._when_there(self._receive_message)
        try:
            role = message.get("role")
            if message.get("op") != "hello" or role not in ("shim", "control"):
                raise WireError("op: the first request is a hello of role shim or control", name="EPROTO")
            self._peer = Sender(str(role))
            return codec.request_of(message, self._peer, fds)
        except WireError as error:
            id = message.get("id")
            if not error.re and type(id) is int and 0 <= id < 1 << 64:
                error.re = id
            close_fds(fds)
            raise

    async def receive(self) -> Request:
        """The next request; answers to our own calls are handed to their callers on the way.

        Raises Disconnected at the end and WireError for what the protocol does not allow. The caller
        owns the request's file descriptors. Always lets others have a turn first.
        """
        return await self._when_there(self.receive_nowait)

    def receive_nowait(self) -> Request:
        """As receive(); raises trio.WouldBlock where no request has come yet."""
        while True:
            message, fds = self._receive_message()
            if "re" in message:
                self._resolve(message, fds)
                continue
            try:
                return codec.request_of(message, self._peer, fds)
            except WireError:
                close_fds(fds)
                raise

    def _receive_message(self) -> tuple[dict[str, object], tuple[int, ...]]:
        """The next message, unchecked but for its being a map, and its descriptors."""
        try:
            packet, fds = receive_packet(self._sock)
        except BlockingIOError:
            raise trio.WouldBlock from None
        except Disconnected:
            self._end_calls()
            raise
        try:
            return codec.unpack(packet), fds
        except WireError:
            close_fds(fds)
            raise

    async def _when_there(self, receive: Callable[[], _Received]) -> _Received:
        while True:
            await self._wait(trio.lowlevel.wait_readable)
            try:
                return receive()
            except trio.WouldBlock:
                continue

    async def _wait(self, ready: Callable[[int], Awaitable[None]]) -> None:
        if self._closed:
            raise Disconnected("the connection was closed")
        try:
            await ready(self._sock.fileno())
        except trio.ClosedResourceError:
            raise Disconnected("the connection was closed") from None

    def _resolve(self, message: Mapping[str, object], fds: tuple[int, ...]) -> None:
        re = message["re"]
        call = self._calls.pop(re, None) if isinstance(re, int) else None
        try:
            if call is None:
                raise WireError(f"re: there is no request {re!r} to answer")
            try:
                answer = codec.answer_of(message, call.op, fds)
            finally:
                call.done.set()
        except WireError:
            close_fds(fds)
            raise
        if call.abandoned:
            close_fds(fds)
        else:
            call.answer = answer

    async def _send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        while not self._closed:
            try:
                return send_packet(self._sock, packet, fds)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)
        raise Disconnected("the connection was closed")

    async def answer(
        self, request: Request, fields: Mapping[str, object] | None = None, fds: Sequence[int] = ()
    ) -> None:
        """Answer `request` without error. `fds` stay the caller's."""
        await self._send(codec.encode_answer(request.op, request.id, fields or {}), fds)

    async def refuse(self, re: int, name: str, text: str) -> None:
        """Answer the request with id `re` with errno `name` and a sentence for people."""
        await self._send(codec.encode_error(re, name, text))

    async def call(
        self, name: str, fields: Mapping[str, object] | None = None, fds: Sequence[int] = ()
    ) -> Answer:
        """Send a request of ours and wait for its answer, which another task's receive() brings.

        Raises RemoteError when the peer refuses, Disconnected when it leaves. The caller owns the
        answer's file descriptors. When this is cancelled, the answer is dropped as it comes.
        """
        if len(self._calls) >= MAX_UNDER_WAY:
            raise RemoteError("EBUSY", f"{MAX_UNDER_WAY} requests have no answer yet")
        call = _Call(OPS[self._me][name])
        id = self._next_id
        self._next_id += 1
        packet = codec.encode_request(call.op, id, fields or {})
        self._calls[id] = call
        try:
            await self._send(packet, fds)
        except BaseException:
            self._calls.pop(id, None)
            raise
        try:
            await call.done.wait()
        except trio.Cancelled:
            # Its answer may still come, and must then find that somebody asked.
            call.abandoned = True
            if call.answer is not None:
                close_fds(call.answer.fds)
            raise
        if call.answer is None:
            raise Disconnected("the peer left without an answer")
        if call.answer.error is not None:
            raise RemoteError(call.answer.error, call.answer.message)
        return call.answer
