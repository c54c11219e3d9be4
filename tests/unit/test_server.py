# SPDX-License-Identifier: GPL-2.0-or-later
"""Connecting: the socket file, the hello, and what a control connection may ask."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
import trio
import trio.testing

from tests.unit.daemon_harness import RawPeer
from tests.unit.fake_shim import new_state
from tierd import server, wire
from tierd.listener import SocketError, listening
from tierd.server import ControlError, Peer, serve_connections
from tierd.wire import Request
from tierd.wire.connection import Connection

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


# The socket file


def test_the_socket_is_for_user_and_group_and_goes_with_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "d" / "s"
    with listening(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(tmp_path) == []


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    with listening(tmp_path / "s"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "s"))
    with listening(tmp_path / "s"), RawPeer(tmp_path / "s"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_living_daemons_socket_is_not(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as first:
        with pytest.raises(SocketError, match="another daemon is listening there"), listening(tmp_path / "s"):
            pass
        with RawPeer(tmp_path / "s"):
            first.accept()[0].close()


def test_only_one_at_a_time_replaces_a_dead_daemons_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "s"))
    stale = os.stat(tmp_path / "s")
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)  # as another daemon that is starting there

    def begin() -> None:
        with listening(tmp_path / "s"):
            pass

    starting = threading.Thread(target=begin)
    starting.start()
    try:
        starting.join(0.2)  # if it does not wait, this is long enough to see it
        assert os.path.samestat(os.stat(tmp_path / "s"), stale)
    finally:
        os.close(directory)
        starting.join()
    assert os.listdir(tmp_path) == []


def test_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(SocketError, match="no socket is there"), listening(tmp_path / "s"):
        pass
    assert (tmp_path / "s").read_text() == "precious"


def test_where_no_socket_can_be(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match=r"a does not exist"), listening(tmp_path / "a" / "b" / "s"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(SocketError, match="Not a directory"), listening(tmp_path / "file" / "s"):
        pass
    with pytest.raises(SocketError, match="too long"), listening(tmp_path / ("x" * 120)):
        pass


def test_a_socket_that_was_taken_over_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.exists()


# The hello


class FakeControl:
    """Remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended = trio.Event()

    def status(self) -> bytes:
        packed: bytes = msgpack.packb({"much": "x" * 200_000})
        return packed

    async def mount(self, directory: str) -> None:
        if directory == "/nowhere":
            raise ControlError("ENOENT", "no such directory")
        self.asked.append(f"mount {directory}")

    async def unmount(self) -> None:
        self.asked.append("unmount")

    async def spill_add(self, request: Request) -> None:
        self.asked.append(f"add {request.text('path')} {request.uint('size')}")

    def spill_drain(self, path: str) -> None:
        self.asked.append(f"drain {path}")

    async def spill_remove(self, path: str) -> None:
        if path == "/nowhere":
            raise ControlError("ENOENT", "no such path")
        self.asked.append(f"remove {path}")

    def stop(self) -> None:
        self.ended.set()


class Serving:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.control = FakeControl()
        self.peers: list[Peer] = []
        self.fault: Exception | None = None

    async def session(self, connection: Connection, hello: Request, peer: Peer) -> None:
        wire.close_fds(hello.fds)
        self.peers.append(peer)
        if self.fault is not None:
            raise self.fault
        fields = {"session": 1, "chunk": 2, "arena": 3, "ram": 4, "spill": 5, "key": ""}
        await connection.answer(hello, fields)
        await connection.receive()


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    with listening(tmp_path / "s") as listener:
        async with trio.open_nursery() as nursery:
            it = Serving(tmp_path / "s")
            nursery.start_soon(serve_connections, listener, it.control, it.session)
            yield it
            nursery.cancel_scope.cancel()


CONTROL = {"id": 1, "op": "hello", "v": 1, "role": "control"}
SHIM = {"id": 1, "op": "hello", "v": 1, "role": "shim", "pid": 5, "name": "x", "key": ""}


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        ({"id": 3, "op": "status"}, "EPROTO", "the first request is a hello"),
        ({"id": 3, "op": "bye"}, "EPROTO", "the first request is a hello"),
        (CONTROL | {"id": 3, "role": "king"}, "EPROTO", "of role shim or control"),
        (CONTROL | {"id": 3, "role": "daemon"}, "EPROTO", "of role shim or control"),
        (CONTROL | {"id": 3, "v": 2}, "EPROTONOSUPPORT", "this daemon speaks version 1, not 2"),
        (CONTROL | {"id": 3, "v": "1"}, "EBADMSG", "v: an unsigned integer is wanted"),
        (CONTROL | {"id": 3, "extra": 1}, "EBADMSG", "extra: unknown key"),
        (SHIM | {"id": 3}, "EBADMSG", "1 file descriptors are wanted, 0 came"),
        ({"re": 3}, "EPROTO", "the first request is a hello"),
        (b"\xc1", "EBADMSG", "not one msgpack value"),
        (bytes(wire.MAX_PACKET + 1), "EMSGSIZE", "65536 bytes"),
    ],
)
async def test_a_bad_hello_is_answered_and_the_connection_closed(
    tmp_path: Path, message: object, error: str, text: str
) -> None:
    async with serving(tmp_path) as it:
        with RawPeer(it.path) as peer:
            answer = await peer.ask(message)
            assert answer is not None
            assert answer["error"] == error
            assert text in answer["message"]
            assert answer["re"] == (3 if isinstance(message, Mapping) and "id" in message else 0)
            assert await peer.at_end()


async def test_descriptors_of_a_bad_hello_are_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        for message in (SHIM | {"v": 9}, SHIM | {"pid": -1}, {"id": 1, "op": "x"}):
            with RawPeer(it.path) as peer:
                state = new_state()
                answer = await peer.ask(message, [state])
                os.close(state)
                assert answer is not None
                assert answer["error"]


async def test_who_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HELLO_PATIENCE", 0.01)
    async with serving(tmp_path) as it:
        with RawPeer(it.path) as peer:
            assert await peer.at_end()


async def test_the_kernel_vouches_for_the_peer(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        with RawPeer(it.path) as peer:
            state = new_state()
            answer = await peer.ask(SHIM, [state])
            os.close(state)
            fields = {"session": 1, "chunk": 2, "arena": 3, "ram": 4, "spill": 5, "key": ""}
            assert answer == {"re": 1, **fields}
        assert (it.peers[0].pid, it.peers[0].uid) == (os.getpid(), os.geteuid())
        assert it.peers[0].pidfd >= 0


async def test_before_linux_6_5_the_process_is_found_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SO_PEERPIDFD", 9999)
    await test_the_kernel_vouches_for_the_peer(tmp_path)


async def test_an_error_of_ours_ends_one_connection_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as it:
        it.fault = ZeroDivisionError("a bug")
        with RawPeer(it.path) as peer:
            state = new_state()
            assert await peer.ask(SHIM, [state]) is None
            os.close(state)
        assert "a connection ended by an error of the daemon's" in caplog.text
        assert "a bug" in caplog.text
        with RawPeer(it.path) as peer:
            await peer.hello()


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    async with serving(tmp_path) as it:
        with RawPeer(it.path) as first:
            await first.hello()
            with RawPeer(it.path) as second:
                assert await second.at_end()
            assert await first.ask({"id": 2, "op": "unmount"}) == {"re": 2}


# Control requests


async def test_control_requests(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        with RawPeer(it.path) as peer:
            await peer.hello()
            assert await peer.ask({"id": 2, "op": "mount", "dir": "/v"}) == {"re": 2}
            assert await peer.ask({"id": 3, "op": "unmount"}) == {"re": 3}
            answer = await peer.ask({"id": 4, "op": "mount", "dir": "/nowhere"})
            assert answer == {"re": 4, "error": "ENOENT", "message": "no such directory"}
            answer = await peer.ask(CONTROL)
            assert answer == {"re": 1, "error": "EISCONN", "message": "hello was said already"}
            assert it.control.asked == ["mount /v", "unmount"]
            assert await peer.ask({"id": 5, "op": "stop"}) == {"re": 5}
            await it.control.ended.wait()
            answer = await peer.ask({"id": 6, "op": "alloc"})
            assert answer is not None
            assert answer["error"] == "EOPNOTSUPP"
            assert await peer.at_end()


async def test_a_snapshot_may_be_larger_than_a_packet(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:

        def ask() -> dict[str, object]:
            with wire.connect(it.path) as client:
                return client.call("status")

        answer = await trio.to_thread.run_sync(ask)
        assert answer == {"snapshot": {"much": "x" * 200_000}}


async def test_the_client_raises_what_the_daemon_refuses(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:

        def ask() -> None:
            with wire.connect(it.path) as client:
                with pytest.raises(wire.RemoteError, match="no such directory") as refusal:
                    client.call("mount", dir="/nowhere")
                assert refusal.value.name == "ENOENT"
                with pytest.raises(wire.WireError, match="'alloc' is not a request of the command line"):
                    client.call("alloc")
                with pytest.raises(wire.WireError, match="dir: missing"):
                    client.call("mount")

        await trio.to_thread.run_sync(ask)


async def test_strangers_may_look_but_not_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = server._peer_of

    def stranger(sock: socket.socket) -> Peer:
        peer = real(sock)
        return Peer(peer.pid, 12345, peer.pidfd)

    monkeypatch.setattr(server, "_peer_of", stranger)
    async with serving(tmp_path) as it:
        with RawPeer(it.path) as peer:
            await peer.hello()
            for id, op in enumerate(({"op": "mount", "dir": "/v"}, {"op": "unmount"}, {"op": "stop"}), 2):
                answer = await peer.ask({"id": id, **op})
                assert answer is not None
                assert (answer["re"], answer["error"]) == (id, "EPERM")
            answer = await peer.ask({"id": 9, "op": "status"})
            assert answer is not None
            assert answer["re"] == 9
        assert it.control.asked == []
        assert not it.control.ended.is_set()
