# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol as data: each operation, its fields, their bounds, and who sends it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = [
    "COUNTERS",
    "MAX_FDS",
    "MAX_PACKET",
    "MAX_STATE_CHUNKS",
    "MAX_UNDER_WAY",
    "OPS",
    "PROTOCOL_VERSION",
    "STATE_HEADER_BYTES",
    "STATE_MAGIC",
    "STATE_VERSION",
    "Field",
    "Op",
    "Sender",
]

PROTOCOL_VERSION = 1
MAX_PACKET = 64 << 10
"""Bytes of the largest packet."""
MAX_FDS = 8
"""File descriptors that one packet may carry."""
MAX_UNDER_WAY = 256
"""Requests of one peer that may be without an answer at a time; more are refused with EBUSY."""

STATE_MAGIC = 0x54534247
STATE_VERSION = 1
STATE_HEADER_BYTES = 4096
MAX_STATE_CHUNKS = 1 << 26
"""Chunk bytes that a state memfd may have: at the smallest chunk, 128 TiB of addresses."""
MAX_VRAM = 1 << 48
"""Bytes of VRAM that a session may claim: no address space has more, and sums of them fit a message."""

COUNTERS = (
    "launches",
    "launches_paged",
    "chunk_hits",
    "chunk_stalls",
    "stall_ns",
    "prefetched",
    "prefetch_hits",
    "evictions",
    "h2d_bytes",
    "d2h_bytes",
    "spill_bytes",
    "fetch_bytes",
    "direct_bytes",
    "vram_slots",
    "vram_slots_used",
    "arena_slots",
    "arena_slots_used",
    "vram_slots_most",
    "arena_slots_most",
    "evictions_clean",
    "spills_clean",
    "chunks_in_place",
    "mapped_slots",
    "pinned_chunks",
    "pins_refused",
    "launches_exceeding",
    "evictions_unplanned",
)
"""Names of the u64 counters in the state memfd's header, in the order of their layout."""


class Sender(enum.StrEnum):
    """Who sends a request; for a client also the role that its hello names."""

    SHIM = "shim"
    CONTROL = "control"
    DAEMON = "daemon"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: an unsigned integer or a text, within bounds."""

    name: str
    kind: type[int] | type[str]
    low: int  #: least value, or least length in UTF-8 bytes
    high: int  #: greatest value, or greatest length in UTF-8 bytes


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: what its request carries and what its answer gives when all is well."""

    name: str
    sender: Sender
    request: tuple[Field, ...] = ()
    answer: tuple[Field, ...] = ()
    request_fds: int = 0
    answer_fds: int = 0


U32 = (1 << 32) - 1
U64 = (1 << 64) - 1


def _uint(name: str, high: int = U64, *, low: int = 0) -> Field:
    return Field(name, int, low, high)


def _text(name: str, high: int, *, low: int = 1) -> Field:
    return Field(name, str, low, high)


_CHUNK = _uint("chunk", MAX_STATE_CHUNKS - 1)
_FIRST = _uint("first", MAX_STATE_CHUNKS - 1)
_ARENA = _uint("arena", U32)
_SLOT = _uint("slot", U32)
_PLACE = (_CHUNK, _ARENA, _SLOT)
_PATH = _text("path", 4096)
_KEY = _text("key", 32, low=0)
_HELLO = (_uint("v", U32), _text("role", 16))

_DECLARED = (
    Op(
        "hello",
        Sender.SHIM,
        request=(*_HELLO, _uint("pid", U32), _text("name", 255, low=0), _KEY),
        answer=(_uint("session", U32), _uint("chunk"), _uint("arena"), _uint("ram"), _uint("spill"), _KEY),
        request_fds=1,
    ),
    Op("adopt", Sender.SHIM, request=(_ARENA,), request_fds=1),
    Op("resume", Sender.SHIM, answer=(_uint("lost", MAX_STATE_CHUNKS),), request_fds=1),
    Op("vram", Sender.SHIM, request=(_uint("slots", MAX_STATE_CHUNKS), _uint("bytes", MAX_VRAM))),
    Op("decided", Sender.SHIM, request=(_text("paging", 16), _text("vram_source", 16))),
    Op("memory", Sender.SHIM, answer=(_uint("total"), _uint("free"))),
    Op(
        "alloc",
        Sender.SHIM,
        request=(_FIRST, _uint("chunks", MAX_STATE_CHUNKS, low=1), _uint("bytes", low=1), _uint("address")),
    ),
    Op("free", Sender.SHIM, request=(_FIRST,)),
    Op("trim", Sender.SHIM, request=(_FIRST, _uint("chunks", MAX_STATE_CHUNKS, low=1))),
    Op("arena", Sender.SHIM, answer=(_ARENA,), answer_fds=1),
    Op("return", Sender.SHIM, request=(_ARENA,)),
    Op("spill", Sender.SHIM, request=_PLACE),
    Op("fetch", Sender.SHIM, request=(*_PLACE, _uint("keep", 1)), answer=(_uint("kept", 1),)),
    Op("drop", Sender.SHIM, request=(_CHUNK,)),
    Op("bye", Sender.SHIM),
    Op("recall", Sender.DAEMON, request=(_ARENA,)),
    Op("hello", Sender.CONTROL, request=_HELLO),
    Op("status", Sender.CONTROL, answer=(_uint("bytes"),), answer_fds=1),
    Op("mount", Sender.CONTROL, request=(_text("dir", 4096),)),
    Op("unmount", Sender.CONTROL),
    Op(
        "spill_add",
        Sender.CONTROL,
        request=(
            _PATH,
            _uint("size"),  # bytes; 0: not given
            _uint("weight", U32, low=1),  # thousandths
            _uint("encrypt", 1),
            _uint("daily_writes"),  # bytes; 0: no limit
            _uint("deadline", U32, low=1),  # milliseconds
            _text("poll", 16),
            _uint("force", 1),
        ),
    ),
    Op("spill_drain", Sender.CONTROL, request=(_PATH,)),
    Op("spill_remove", Sender.CONTROL, request=(_PATH,)),
    Op("stop", Sender.CONTROL),
)

OPS: Mapping[Sender, Mapping[str, Op]] = MappingProxyType(
    {sender: MappingProxyType({op.name: op for op in _DECLARED if op.sender is sender}) for sender in Sender}
)
"""Every operation, by who sends it and by name."""
