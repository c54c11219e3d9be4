# SPDX-License-Identifier: GPL-2.0-or-later
"""One packet with its file descriptors over a SOCK_SEQPACKET socket, without waiting.

The trio connection and the blocking client differ in how they wait; what a packet is stands here
once.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence

from .codec import WireError
from .schema import MAX_FDS, MAX_PACKET

__all__ = ["Disconnected", "close_fds", "receive_packet", "send_packet"]

_INT = array.array("i").itemsize
# CMSG_LEN and not CMSG_SPACE: the padding of the latter would let a ninth descriptor in.
_ANCILLARY = socket.CMSG_LEN(MAX_FDS * _INT)
# Plain integers: an enum's operators are Python, and cost as much as the system call's own code.
_CLOEXEC, _NOSIGNAL = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_NOSIGNAL)
_TRUNC, _CTRUNC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)


class Disconnected(ConnectionError):
    """The peer is gone."""


def close_fds(fds: Iterable[int]) -> None:
    """Close descriptors that nobody wanted."""
    for fd in fds:
        os.close(fd)


def receive_packet(sock: socket.socket) -> tuple[bytes, tuple[int, ...]]:
    """The next packet and the descriptors that came with it, which the caller then owns.

    Raises Disconnected at the end, WireError when a packet or its descriptors did not fit (what came
    of them is closed), and BlockingIOError when `sock` does not block and there is none.
    """
    try:
        # One byte more than is allowed: a packet of exactly the limit is not yet a truncated one.
        packet, ancillary, flags, _ = sock.recvmsg(MAX_PACKET + 1, _ANCILLARY, _CLOEXEC)
    except (BlockingIOError, TimeoutError):
        raise
    except OSError as error:
        raise Disconnected(f"the connection broke: {error.strerror}") from error
    fds = _descriptors(ancillary) if ancillary else ()
    if flags & _CTRUNC:
        close_fds(fds)
        raise WireError(f"a packet may carry {MAX_FDS} file descriptors, more came or could not be opened")
    if flags & _TRUNC or len(packet) > MAX_PACKET:
        close_fds(fds)
        raise WireError(f"a packet may have {MAX_PACKET} bytes, this one is larger", name="EMSGSIZE")
    if not packet:
        # The end, or an empty packet, which is no message either: both end the conversation.
        close_fds(fds)
        raise Disconnected("the peer closed the connection")
    return packet, fds


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT])
    return tuple(fds)


def send_packet(sock: socket.socket, packet: bytes, fds: Sequence[int] = ()) -> None:
    """Send `packet`; `fds` stay the caller's. Raises Disconnected, or BlockingIOError as above."""
    try:
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sock.sendmsg([packet], ancillary, _NOSIGNAL)
        else:
            sock.send(packet, _NOSIGNAL)
    except (BlockingIOError, TimeoutError):
        raise
    except OSError as error:
        raise Disconnected(f"the connection broke: {error.strerror}") from error
