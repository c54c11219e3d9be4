# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages: what the schema declares passes, everything else is refused by name."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tierd import wire
from tierd.wire import OPS, Disconnected, Op, RemoteError, Sender, WireError, codec, packet
from tierd.wire.connection import Connection

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

SPILL = {"id": 7, "op": "spill", "chunk": 3, "arena": 1, "slot": 0}


def test_every_op_is_declared_once_for_its_sender() -> None:
    assert {sender: set(ops) for sender, ops in OPS.items()} == {
        Sender.SHIM: {
            "hello",
            "vram",
            "decided",
            "memory",
            "alloc",
            "free",
            "trim",
            "arena",
            "return",
            "spill",
            "fetch",
            "drop",
            "bye",
            "adopt",
            "resume",
        },
        Sender.CONTROL: {
            "hello",
            "status",
            "mount",
            "unmount",
            "spill_add",
            "spill_drain",
            "spill_remove",
            "stop",
        },
        Sender.DAEMON: {"recall"},
    }


def test_the_counters_fit_the_header() -> None:
    assert 16 + 8 * len(wire.COUNTERS) <= wire.STATE_HEADER_BYTES
    assert len(set(wire.COUNTERS)) == len(wire.COUNTERS)


def test_protocol_page_names_every_op() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    for ops in OPS.values():
        for op in ops.values():
            assert f"| `{op.name}` |" in page
            for field in op.request:
                assert f"`{field.name}`" in page


def values(op: Op) -> st.SearchStrategy[dict[str, object]]:
    def one(field: wire.Field) -> st.SearchStrategy[object]:
        if field.kind is int:
            return st.integers(field.low, field.high)
        return st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=field.low, max_size=16)

    return st.fixed_dictionaries({field.name: one(field) for field in op.request})


any_op = st.sampled_from([op for ops in OPS.values() for op in ops.values()])


@given(any_op.flatmap(lambda op: st.tuples(st.just(op), values(op))), st.integers(0, 2**64 - 1))
def test_requests_come_back_as_they_were(case: tuple[Op, dict[str, object]], id: int) -> None:
    op, fields = case
    fds = tuple(range(op.request_fds))
    request = codec.request_of(codec.unpack(codec.encode_request(op, id, fields)), op.sender, fds)
    assert (request.id, request.op, dict(request.fields), request.fds) == (id, op, fields, fds)


@given(st.binary(max_size=200))
def test_no_packet_gets_through_as_anything_but_a_map(raw: bytes) -> None:
    try:
        message = codec.unpack(raw)
    except WireError:
        return
    assert all(isinstance(key, str) for key in message)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "not one msgpack value"),
        (b"\xc1", "not one msgpack value: FormatError"),
        (msgpack.packb({}) * 2, "not one msgpack value"),
        (msgpack.packb({1: 2}), "not one msgpack value"),
        (msgpack.packb({b"id": 2}), "a key is text"),
        (msgpack.packb([1]), "a message is a map, not list"),
        (msgpack.packb("hello"), "a message is a map, not str"),
        (b"\x91" * 5000, "not one msgpack value"),
        (b"\x81\xa1\xff\x01", "not one msgpack value"),
    ],
)
def test_what_is_no_map_is_refused(raw: bytes, text: str) -> None:
    with pytest.raises(WireError, match=text):
        codec.unpack(raw)


@pytest.mark.parametrize(
    ("change", "text", "name"),
    [
        ({"id": None}, "id: missing", "EBADMSG"),
        ({"id": -1}, "id: an unsigned integer", "EBADMSG"),
        ({"id": 1 << 63, "chunk": None}, "chunk: missing", "EBADMSG"),
        ({"id": True}, "id: an unsigned integer", "EBADMSG"),
        ({"op": "explode"}, "op: 'explode' is not a request of role shim", "EOPNOTSUPP"),
        ({"op": "stop"}, "op: 'stop' is not a request of role shim", "EOPNOTSUPP"),
        ({"op": 5}, "op: '5' is not", "EOPNOTSUPP"),
        ({"op": None}, "op: 'None' is not", "EOPNOTSUPP"),
        ({"slot": None}, "slot: missing", "EBADMSG"),
        ({"slot": "0"}, "slot: an unsigned integer is wanted, not str", "EBADMSG"),
        ({"slot": True}, "slot: an unsigned integer is wanted, not bool", "EBADMSG"),
        ({"slot": 0.0}, "slot: an unsigned integer is wanted, not float", "EBADMSG"),
        ({"slot": -1}, "slot: -1 is not within 0 to", "ERANGE"),
        ({"chunk": 1 << 26}, "chunk: 67108864 is not within 0 to 67108863", "ERANGE"),
        ({"colour": "red"}, "colour: unknown key", "EBADMSG"),
        ({"\x1bc\n": 1}, r"^\?c\?: unknown key", "EBADMSG"),
    ],
)
def test_a_request_that_breaks_the_schema_is_refused(change: dict[str, object], text: str, name: str) -> None:
    message = {key: value for key, value in (SPILL | change).items() if value is not None}
    with pytest.raises(WireError, match=text) as refusal:
        codec.request_of(message, Sender.SHIM)
    assert refusal.value.name == name
    id = message.get("id")
    assert refusal.value.re == (id if type(id) is int and id >= 0 else 0)


def test_text_is_bounded_in_bytes_and_has_no_nul() -> None:
    mount = OPS[Sender.CONTROL]["mount"]
    for text, complaint in [
        ("", "0 bytes of text"),
        ("ü" * 2049, "4098 bytes"),
        ("a\0b", "without NUL"),
        (3, "text is"),
    ]:
        with pytest.raises(WireError, match=f"dir: .*{complaint}"):
            codec.encode_request(mount, 1, {"dir": text})


def test_file_descriptors_are_counted() -> None:
    message = {"id": 1, "op": "hello", "v": 1, "role": "shim", "pid": 1, "name": "", "key": ""}
    with pytest.raises(WireError, match="hello: 1 file descriptors are wanted, 0 came"):
        codec.request_of(message, Sender.SHIM)
    with pytest.raises(WireError, match="spill: 0 file descriptors are wanted, 1 came"):
        codec.request_of(SPILL, Sender.SHIM, (5,))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"re": 1}, "arena: missing"),
        ({"re": 1, "arena": -1}, "arena: -1"),
        ({"re": 1, "arena": 1, "more": 2}, "more: unknown key"),
        ({"re": 1, "error": "EWHAT", "message": ""}, "error: an errno name"),
        ({"re": 1, "error": 5, "message": ""}, "error: an errno name"),
        ({"re": 1, "error": "EIO"}, "message: text"),
        ({"re": 1, "error": "EIO", "message": "", "arena": 1}, "arena: unknown key"),
        ({"re": -1}, "re: an unsigned"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_refused(answer: dict[str, object], text: str) -> None:
    with pytest.raises(WireError, match=text):
        codec.answer_of(answer, OPS[Sender.SHIM]["arena"], (3,) if "error" not in answer else ())


def test_what_is_sent_is_checked_too() -> None:
    with pytest.raises(WireError, match="slot: missing"):
        codec.encode_request(OPS[Sender.SHIM]["spill"], 1, {"chunk": 1, "arena": 1})
    with pytest.raises(WireError, match="total: missing"):
        codec.encode_answer(OPS[Sender.SHIM]["memory"], 1, {"free": 1})
    with pytest.raises(WireError, match="not an errno name"):
        codec.encode_error(1, "EWHAT", "")
    assert len(codec.encode_error(1, "EIO", "x" * 100_000)) < 2000


# Packets


@pytest.fixture
def null() -> Iterator[int]:
    """A file descriptor to send."""
    with open(os.devnull) as file:
        yield file.fileno()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_packets_carry_descriptors_that_are_not_inherited(
    pair: tuple[socket.socket, socket.socket], null: int
) -> None:
    ours, theirs = pair
    packet.send_packet(ours, b"x", [null] * wire.MAX_FDS)
    raw, fds = packet.receive_packet(theirs)
    assert (raw, len(fds)) == (b"x", wire.MAX_FDS)
    assert not any(map(os.get_inheritable, fds))
    wire.close_fds(fds)


def test_too_many_descriptors_are_closed_and_refused(
    pair: tuple[socket.socket, socket.socket], null: int
) -> None:
    ours, theirs = pair
    packet.send_packet(ours, b"x", [null] * (wire.MAX_FDS + 1))
    with pytest.raises(WireError, match="8 file descriptors"):
        packet.receive_packet(theirs)


def test_a_packet_too_large_is_refused_with_its_descriptors(
    pair: tuple[socket.socket, socket.socket], null: int
) -> None:
    ours, theirs = pair
    packet.send_packet(ours, bytes(wire.MAX_PACKET + 1), [null])
    with pytest.raises(WireError, match="65536 bytes") as refusal:
        packet.receive_packet(theirs)
    assert refusal.value.name == "EMSGSIZE"
    packet.send_packet(ours, bytes(wire.MAX_PACKET))
    assert len(packet.receive_packet(theirs)[0]) == wire.MAX_PACKET


def test_the_end_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    with pytest.raises(Disconnected):
        packet.receive_packet(theirs)
    with pytest.raises(Disconnected):
        packet.send_packet(theirs, b"x")


# Connections


@asynccontextmanager
async def connections() -> AsyncIterator[tuple[Connection, Connection]]:
    """The daemon's end, and the shim's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with (
        Connection(ours, me=Sender.DAEMON, peer=Sender.SHIM) as daemon,
        Connection(theirs, me=Sender.SHIM, peer=Sender.DAEMON) as shim,
    ):
        yield daemon, shim


async def drain(connection: Connection) -> None:
    with pytest.raises(Disconnected):
        await connection.receive()


async def test_both_ask_and_answers_come_in_any_order() -> None:
    async with connections() as (daemon, shim), trio.open_nursery() as nursery:
        answered = {chunk: trio.Event() for chunk in range(3)}
        recalled = trio.Event()

        async def drop(chunk: int) -> None:
            await shim.call("drop", {"chunk": chunk})
            answered[chunk].set()

        async def recall() -> None:
            await daemon.call("recall", {"arena": 9})
            recalled.set()

        for chunk in range(3):
            nursery.start_soon(drop, chunk)
        requests = {r.uint("chunk"): r for r in [await daemon.receive() for _ in range(3)]}
        nursery.start_soon(drain, daemon)
        nursery.start_soon(recall)
        request = await shim.receive()
        assert request.uint("arena") == 9
        nursery.start_soon(drain, shim)
        await shim.answer(request)
        await recalled.wait()
        waiting = {0, 1, 2}
        for chunk in (2, 0, 1):
            await daemon.answer(requests[chunk])
            await answered[chunk].wait()
            waiting.remove(chunk)
            assert not any(answered[other].is_set() for other in waiting)
        shim.close()


async def test_a_refusal_is_raised_where_the_request_was_made() -> None:
    async with connections() as (daemon, shim), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(RemoteError, match="no room") as refusal:
                await shim.call("arena")
            assert refusal.value.name == "ENOSPC"
            shim.close()

        nursery.start_soon(ask)
        nursery.start_soon(drain, shim)
        request = await daemon.receive()
        await daemon.refuse(request.id, "ENOSPC", "no room")


async def test_calls_end_when_the_peer_leaves() -> None:
    async with connections() as (daemon, shim), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Disconnected):
                await shim.call("memory")

        nursery.start_soon(ask)
        nursery.start_soon(drain, shim)
        await daemon.receive()
        daemon.close()


async def test_descriptors_of_an_answer_that_nobody_waits_for_are_closed(null: int) -> None:
    async with connections() as (daemon, shim), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as caller:
                caller.start_soon(shim.call, "arena")
                request = await daemon.receive()
                scope.cancel()
        nursery.start_soon(drain, shim)
        await daemon.answer(request, {"arena": 1}, [null])
        await trio.testing.wait_all_tasks_blocked()
        daemon.close()


@pytest.mark.parametrize("message", [{"re": 12}, {"re": "x"}, {"re": 12, "error": "EIO", "message": ""}])
async def test_an_answer_to_nothing_is_refused(message: dict[str, object], null: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        async with Connection(ours, me=Sender.DAEMON, peer=Sender.SHIM) as daemon:
            socket.send_fds(theirs, [msgpack.packb(message)], [null])
            with pytest.raises(WireError, match="re: there is no request"):
                await daemon.receive()


async def test_calls_are_bounded() -> None:
    async with connections() as (_, shim), trio.open_nursery() as nursery:
        for _ in range(wire.MAX_UNDER_WAY):
            nursery.start_soon(shim.call, "memory")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RemoteError) as refusal:
            await shim.call("memory")
        assert refusal.value.name == "EBUSY"
        nursery.cancel_scope.cancel()


# The blocking client


def test_no_daemon_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(wire.NoDaemonError, match=r"no GreenBoost daemon listens at .*/none: No such file"):
        wire.connect(tmp_path / "none")
    with pytest.raises(wire.NoDaemonError, match="AF_UNIX path too long"):
        wire.connect("/" + "x" * 200)


def test_a_silent_daemon_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(wire.NoDaemonError, match="does not answer"):
            wire.connect(tmp_path / "s", timeout=0.05)
