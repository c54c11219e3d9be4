# SPDX-License-Identifier: GPL-2.0-or-later
"""The module's netlink family (kmod/greenboost.yaml) as Python sees it: states are dictionaries."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_HEADER = Path(__file__).parents[4] / "kmod" / "uapi" / "greenboost_netlink.h"
LEVELS = ("calm", "low", "critical")
CAUSES = ("watermark", "shrinker", "oom", "t3")

_NETLINK_GENERIC = 16
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_REQUEST, _ACK = 1, 4
_NLMSG_ERROR, _GENL_ID_CTRL = 2, 16
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME, _MCAST_GROUPS = 3, 1, 2, 7
_GROUP_NAME, _GROUP_ID = 1, 2
GET, EVENT = 1, 2


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _names() -> dict[int, str]:
    """Numbers and names of the family's attributes, from the generated header."""
    text = _HEADER.read_text()
    lines = [
        line.strip().rstrip(",") for line in text.splitlines() if line.startswith("\tGREENBOOST_A_STATE_")
    ]
    names = [line.partition(" =")[0].removeprefix("GREENBOOST_A_STATE_").lower() for line in lines]
    return dict(enumerate(names, 1))


_NAMES = _names()


class Family:
    """A socket that knows the family."""

    def __init__(self, *, events: bool = False, buffer: int | None = None) -> None:
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
        )
        self.socket.settimeout(300)
        self.socket.bind((0, 0))
        self._seq = 0
        name = attribute(_FAMILY_NAME, b"greenboost\0")
        found = dict(attributes(self.ask(_GENL_ID_CTRL, _GET_FAMILY, name)))
        self.id = struct.unpack("=H", found[_FAMILY_ID])[0]
        [(_, group)] = attributes(found[_MCAST_GROUPS])
        fields = dict(attributes(group))
        assert fields[_GROUP_NAME] == b"events\0"
        self.group = struct.unpack("=I", fields[_GROUP_ID])[0]
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if events:
            self.socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, self.group)

    def __enter__(self) -> Family:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def ask(self, family: int, command: int, payload: bytes = b"", version: int = 1) -> bytes:
        """The attributes of the answer. Raises OSError with what the kernel says."""
        self._seq += 1
        body = struct.pack("=BBH", command, version, 0) + payload
        self.socket.send(struct.pack("=IHHII", 16 + len(body), family, _REQUEST, self._seq, 0) + body)
        while True:
            _, seq, rest = self._receive()
            if seq == self._seq:
                return rest[4:]

    def _receive(self) -> tuple[int, int, bytes]:
        data = self.socket.recv(1 << 16)
        length, kind, _, seq, _ = struct.unpack_from("=IHHII", data)
        if kind == _NLMSG_ERROR:
            error = -struct.unpack_from("=i", data, 16)[0]
            raise OSError(error, os.strerror(error))
        return kind, seq, data[16:length]

    def _state(self, data: bytes) -> dict[str, int]:
        return {
            _NAMES[kind]: int.from_bytes(value, "little")
            for kind, value in attributes(data)
            if _NAMES[kind] != "pad"
        }

    def get(self, payload: bytes = b"") -> dict[str, int]:
        return self._state(self.ask(self.id, GET, payload))

    def event(self) -> dict[str, int]:
        """The next one; waits for it. Raises OSError with ENOBUFS if some were lost."""
        kind, _, rest = self._receive()
        assert kind == self.id
        assert rest[0] == EVENT
        return self._state(rest[4:])
