# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages to packets and back, strictly: what schema does not declare is refused by name.

Nothing here touches a socket. File descriptors travel beside a packet, so a message carries them as
plain integers; whoever holds the message owns them.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgpack

from tierd.model import printable

from .schema import MAX_PACKET, OPS, Field, Op, Sender

__all__ = [
    "Answer",
    "RemoteError",
    "Request",
    "WireError",
    "answer_of",
    "encode_answer",
    "encode_error",
    "encode_request",
    "request_of",
    "unpack",
]

# Not errorcode, which has one name a number: EOPNOTSUPP and ENOTSUP are the same.
ERRNO_NAMES = frozenset(name for name in vars(errno) if name.startswith("E"))

Value = int | str


class WireError(Exception):
    """A message that the protocol does not allow.

    `name` is the errno name to answer with, `re` the id of the request at fault (0 where the packet
    was too broken to tell).
    """

    def __init__(self, message: str, *, name: str = "EBADMSG", re: int = 0) -> None:
        super().__init__(message)
        self.name = name
        self.re = re


class RemoteError(Exception):
    """The peer refused a request: `name` is an errno name, the text is for people."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Request:
    """A request that keeps to the schema. The holder owns `fds`."""

    id: int
    op: Op
    fields: Mapping[str, Value]
    fds: tuple[int, ...] = ()

    def uint(self, name: str) -> int:
        """The unsigned integer in field `name`."""
        value = self.fields[name]
        assert isinstance(value, int)
        return value

    def text(self, name: str) -> str:
        """The text in field `name`."""
        value = self.fields[name]
        assert isinstance(value, str)
        return value


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that keeps to the schema; `error` is an errno name, or None. The holder owns `fds`."""

    re: int
    fields: Mapping[str, Value]
    error: str | None = None
    message: str = ""
    fds: tuple[int, ...] = ()


def unpack(packet: bytes) -> dict[str, object]:
    """The map in `packet`. Raises WireError unless it is exactly one map with text keys."""
    if len(packet) > MAX_PACKET:
        raise WireError(f"a packet may have {MAX_PACKET} bytes, this one is larger", name="EMSGSIZE")
    try:
        message = msgpack.unpackb(packet)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise WireError(f"not one msgpack value: {str(error) or type(error).__name__}") from None
    if not isinstance(message, dict):
        raise WireError(f"a message is a map, not {type(message).__name__}")
    for key in message:
        if not isinstance(key, str):
            raise WireError(f"a key is text, not {key!r}")
    return message


def _id(message: Mapping[str, object], key: str) -> int:
    value = message[key]
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise WireError(f"{key}: an unsigned integer of 64 bits, not {value!r}")
    return value


def _check(field: Field, value: object) -> Value:
    # type() and not isinstance(): True is an int to Python, but not on the wire.
    if type(value) is not field.kind:
        wanted = "an unsigned integer" if field.kind is int else "text"
        raise WireError(f"{field.name}: {wanted} is wanted, not {type(value).__name__}")
    if isinstance(value, int):
        if not field.low <= value <= field.high:
            raise WireError(f"{field.name}: {value} is not within {field.low} to {field.high}", name="ERANGE")
        return value
    assert isinstance(value, str)
    if not field.low <= len(value.encode()) <= field.high:
        raise WireError(
            f"{field.name}: {len(value.encode())} bytes of text, {field.low} to {field.high} are allowed",
            name="ERANGE",
        )
    if "\0" in value:
        raise WireError(f"{field.name}: text without NUL is wanted")
    return value


def _fields(
    declared: Sequence[Field], message: Mapping[str, object], known: tuple[str, ...]
) -> dict[str, Value]:
    fields: dict[str, Value] = {}
    for field in declared:
        if field.name not in message:
            raise WireError(f"{field.name}: missing")
        fields[field.name] = _check(field, message[field.name])
    if len(message) != len(fields) + len(known):
        unknown = next(key for key in message if key not in fields and key not in known)
        raise WireError(f"{printable(unknown[:64])}: unknown key")
    return fields


def _check_fds(op: Op, fds: tuple[int, ...], wanted: int) -> None:
    if len(fds) != wanted:
        raise WireError(f"{op.name}: {wanted} file descriptors are wanted, {len(fds)} came")


def request_of(message: Mapping[str, object], sender: Sender, fds: tuple[int, ...] = ()) -> Request:
    """The request that `message` is. Raises WireError naming the field; `fds` stay the caller's then."""
    re = 0
    try:
        if "id" not in message:
            raise WireError("id: missing")
        re = _id(message, "id")
        name = message.get("op")
        op = OPS[sender].get(name) if isinstance(name, str) else None
        if op is None:
            raise WireError(f"op: {str(name)[:64]!r} is not a request of role {sender}", name="EOPNOTSUPP")
        fields = _fields(op.request, message, ("id", "op"))
        _check_fds(op, fds, op.request_fds)
    except WireError as error:
        error.re = re
        raise
    return Request(re, op, fields, fds)


def answer_of(message: Mapping[str, object], op: Op, fds: tuple[int, ...] = ()) -> Answer:
    """The answer to a request `op` that `message` is. Raises WireError; `fds` stay the caller's then."""
    re = _id(message, "re")
    if "error" not in message:
        fields = _fields(op.answer, message, ("re",))
        _check_fds(op, fds, op.answer_fds)
        return Answer(re, fields, fds=fds)
    error, text = message["error"], message.get("message")
    if not isinstance(error, str) or error not in ERRNO_NAMES:
        raise WireError(f"error: an errno name is wanted, not {error!r}")
    if not isinstance(text, str):
        raise WireError("message: text is wanted")
    _fields((), message, ("re", "error", "message"))
    _check_fds(op, fds, 0)
    return Answer(re, {}, error, text)


def _pack(message: Mapping[str, object]) -> bytes:
    packet: bytes = msgpack.packb(message)
    if len(packet) > MAX_PACKET:
        raise WireError(f"a packet may have {MAX_PACKET} bytes, this one has {len(packet)}", name="EMSGSIZE")
    return packet


def encode_request(op: Op, id: int, fields: Mapping[str, object]) -> bytes:
    """The packet of a request. Raises WireError when the receiver would refuse it."""
    message = {"id": id, "op": op.name, **fields}
    _fields(op.request, message, ("id", "op"))
    return _pack(message)


def encode_answer(op: Op, re: int, fields: Mapping[str, object]) -> bytes:
    """The packet of an answer without error. Raises WireError when the receiver would refuse it."""
    message = {"re": re, **fields}
    _fields(op.answer, message, ("re",))
    return _pack(message)


def encode_error(re: int, name: str, text: str) -> bytes:
    """The packet of a refusal; `name` is an errno name. The text is cut at 1024 characters."""
    if name not in ERRNO_NAMES:
        raise WireError(f"error: {name!r} is not an errno name")
    return _pack({"re": re, "error": name, "message": text[:1024]})
