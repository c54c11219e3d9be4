# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of docs/protocol.md: what may be said, how it is packed, and who carries it.

schema declares it as data, codec turns messages into packets, packet moves packets and file
descriptors over a socket, connection is the daemon's side in trio and client the blocking one of the
command line. connection is imported by its own name: most commands would load trio for nothing.
"""

from .client import PATIENCE, Client, NoDaemonError, connect
from .codec import Answer, RemoteError, Request, WireError
from .packet import Disconnected, close_fds
from .schema import (
    COUNTERS,
    MAX_FDS,
    MAX_PACKET,
    MAX_STATE_CHUNKS,
    MAX_UNDER_WAY,
    OPS,
    PROTOCOL_VERSION,
    STATE_HEADER_BYTES,
    STATE_MAGIC,
    STATE_VERSION,
    Field,
    Op,
    Sender,
)

__all__ = [
    "COUNTERS",
    "MAX_FDS",
    "MAX_PACKET",
    "MAX_STATE_CHUNKS",
    "MAX_UNDER_WAY",
    "OPS",
    "PATIENCE",
    "PROTOCOL_VERSION",
    "STATE_HEADER_BYTES",
    "STATE_MAGIC",
    "STATE_VERSION",
    "Answer",
    "Client",
    "Disconnected",
    "Field",
    "NoDaemonError",
    "Op",
    "RemoteError",
    "Request",
    "Sender",
    "WireError",
    "close_fds",
    "connect",
]
