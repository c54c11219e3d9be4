# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of GreenBoost as values: tiers, sizes, and snapshots of what is where.

Everything here is immutable and imports nothing of the project. Sizes are bytes unless the name
says otherwise; times are seconds.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "MAX_CHUNK",
    "MIN_CHUNK",
    "NO_PRESSURE",
    "NO_PRESSURE_KNOWN",
    "PAGING_MODES",
    "POLLS",
    "VRAM_SOURCES",
    "AllocationSnapshot",
    "ChunkState",
    "Decisions",
    "EndedSession",
    "Poll",
    "Pressure",
    "PressureLevel",
    "PressureSnapshot",
    "SessionSnapshot",
    "SizeError",
    "Snapshot",
    "SpillOptions",
    "SpillPathSnapshot",
    "Tier",
    "TierSnapshot",
    "format_size",
    "parse_size",
    "printable",
]

MIN_CHUNK = 2 << 20
"""The smallest chunk: the CUDA driver's allocation granularity, bytes."""
MAX_CHUNK = 64 << 20
"""The largest chunk, bytes."""


class Tier(enum.IntEnum):
    """Where bytes can live, fastest first."""

    T1 = 1  #: VRAM
    T2 = 2  #: RAM
    T3 = 3  #: NVMe


class ChunkState(bytes, enum.Enum):
    """One byte a chunk in a session's shared state map, readable as it stands.

    The shim writes these bytes (shim/wire.h has the same letters); the view shows them.
    """

    FREE = b"\0"  #: no allocation has this chunk
    EMPTY = b"."  #: allocated, never written: it needs no room anywhere yet
    T1 = b"1"
    T2 = b"2"
    T3 = b"3"
    RISING = b"^"  #: on its way to VRAM
    SINKING = b"v"  #: on its way down
    MAPPED = b"m"  #: in RAM and used there, by the GPU over the bus
    PINNED = b"p"  #: in VRAM, and stays: a pin names it, or a graph copies it


class PressureLevel(enum.IntEnum):
    """How short RAM is; more is worse. The module's enum greenboost_level has the same values."""

    CALM = 0
    LOW = 1  #: memory is wanted back
    CRITICAL = 2  #: at once


@dataclass(frozen=True, slots=True)
class Pressure:
    """How short RAM is at one moment, whoever says so."""

    level: PressureLevel
    wanted: int  #: bytes to be given back, so that `available` reaches `high`; 0 when calm
    available: int  #: bytes that can be had without swapping
    high: int  #: bytes that have to be available for nothing to be wanted
    events: int  #: how often the level has changed

    @property
    def spare(self) -> int:
        """Bytes that could be taken without any being wanted back."""
        return max(0, self.available - self.high)


NO_PRESSURE = Pressure(PressureLevel.CALM, 0, 0, 0, 0)
"""Before anybody has looked."""


class SizeError(ValueError):
    """A size that cannot be understood; the message says what would be."""


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z%]*)\s*")
_MAX_DIGITS = 40
"""Of a size; with some hundreds a float is infinite, with some thousands int() refuses."""
_UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**n for n, p in enumerate("kmgtp", 1)},
    **{f"{p}ib": 1024**n for n, p in enumerate("kmgtp", 1)},
}


def parse_size(text: str, *, whole: int | None = None) -> int:
    """Bytes meant by ``12GiB``, ``31.8GB``, ``4096`` or, when `whole` is given, ``80%`` of it.

    Raises SizeError, whose message repeats the text and gives an example.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise SizeError(f"{text!r} is not a size; write it like 12GiB, 31.8GB or 80%")
    if len(match[1]) > _MAX_DIGITS:
        raise SizeError(f"a number of {len(match[1])} digits is no size; write it like 12GiB")
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if whole is None:
            raise SizeError(f"{text!r}: a percentage has no meaning here; write it like 12GiB")
        if number > 100:
            raise SizeError(f"{text!r} is more than the whole")
        return int(whole * number / 100)
    if unit not in _UNITS:
        raise SizeError(
            f"{text!r} has an unknown unit {match[2]!r}; use KiB, MiB, GiB, TiB, KB, MB, GB or TB"
        )
    if unit in ("", "b") and not number.is_integer():
        raise SizeError(f"{text!r} is not a whole number of bytes")
    if "." not in match[1]:
        return int(match[1]) * _UNITS[unit]
    return int(number * _UNITS[unit])


def format_size(size: int) -> str:
    """A size for people, in binary units: ``56.0 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def printable(text: str) -> str:
    """`text` of somebody else's for a terminal or a log: no escape sequences, no lines of their own."""
    return "".join(c if c.isprintable() else "?" for c in text)


Poll = Literal["none", "io", "sq"]
POLLS: Mapping[str, Poll] = {"none": "none", "io": "io", "sq": "sq"}


@dataclass(frozen=True, slots=True)
class TierSnapshot:
    """One tier over all sessions."""

    tier: Tier
    total: int  #: bytes it may hold; for T1 the sum of the sessions' limits
    used: int  #: bytes of chunks in it


@dataclass(frozen=True, slots=True)
class SpillOptions:
    """How a spill path is to be used."""

    weight: float = 1.0  #: multiplies the share of the traffic that its speed gives it
    encrypt: bool = False  #: with a key that is only in memory
    daily_writes: int | None = None  #: bytes that should be written to it a day at most
    deadline: float = 10.0  #: seconds without an answer after which its device counts as stalled
    poll: Poll = "none"  #: see nvme.ring.Ring


@dataclass(frozen=True, slots=True)
class SpillPathSnapshot:
    """One spill file or device."""

    path: str
    total: int  #: bytes of extents
    used: int  #: bytes of extents in use
    written: int  #: bytes written since it was opened
    read: int  #: bytes read since it was opened
    reading: int = 0  #: nanoseconds in which somebody waited for a read
    state: str = "active"  #: see nvme.health.PathState
    weight: float = 1.0
    rate: int | None = None  #: measured, bytes/s; None while it is the only path
    errors: int = 0  #: transfers that failed
    retired: int = 0  #: bytes of extents that are out of use
    encrypted: bool = False
    daily_writes: int | None = None  #: bytes that may be written a day
    written_today: int = 0  #: bytes of them


@dataclass(frozen=True, slots=True)
class AllocationSnapshot:
    """One allocation of an application."""

    address: int  #: device address
    bytes: int  #: what was asked for
    first_chunk: int  #: index of its first chunk in the session's state map
    chunks: int
    map: str  #: one ChunkState letter a chunk


PAGING_MODES = ("auto", "mapped", "off")
"""What is done with what VRAM has no room for: it comes and goes; it is used in RAM; nothing, the driver's
own memory is all there is."""
VRAM_SOURCES = ("asked", "available", "free")
"""Why a session may use so much VRAM: that was asked for; more was asked for than was free; that was free,
less a reserve."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """How a session holds memory, as its shim has decided, and why."""

    paging: str = "unknown"  #: one of PAGING_MODES; "unknown": before it has allocated anything
    vram_source: str = "unknown"  #: why it may use so much VRAM, one of VRAM_SOURCES


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """One application process."""

    id: int
    pid: int
    uid: int
    name: str
    vram_slots: int  #: T1 slots the session may fill
    committed_chunks: int  #: chunks of all its allocations
    resident: Mapping[Tier, int]  #: bytes in each tier
    counters: Mapping[str, int]  #: wire.COUNTERS by name, as the shim last wrote them
    allocations: tuple[AllocationSnapshot, ...] = ()
    written: int = 0  #: bytes of its chunks written to T3
    read: int = 0  #: bytes of its chunks read back from T3
    vram_bytes: int = 0  #: bytes of VRAM that the session may use, as its shim said
    decided: Decisions = Decisions()


@dataclass(frozen=True, slots=True)
class EndedSession:
    """What became of a session that is over."""

    id: int
    pid: int
    uid: int
    name: str
    seconds: float  #: from its hello to its end
    peak_chunks: int  #: chunks of all its allocations when they were most
    resident: Mapping[Tier, int]  #: bytes in each tier when that tier held most
    counters: Mapping[str, int]  #: wire.COUNTERS by name, at the end
    written: int  #: bytes of its chunks written to T3
    read: int  #: bytes of its chunks read back from T3
    vram_bytes: int = 0  #: bytes of VRAM that it might use
    decided: Decisions = Decisions()


@dataclass(frozen=True, slots=True)
class PressureSnapshot:
    """How short RAM is, and what was done about it."""

    source: str  #: who says so: "module", "system", or "none"
    level: PressureLevel = PressureLevel.CALM
    wanted: int = 0  #: bytes
    available: int = 0  #: bytes
    events: int = 0  #: how often the level has changed
    returned: int = 0  #: bytes of arenas that went back to the system because RAM was short
    withheld: int = 0  #: bytes of T2 that are not to be had until RAM is not short any more


NO_PRESSURE_KNOWN = PressureSnapshot("none")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the daemon knows at one moment; metrics.snapshot() makes it, everything else shows it."""

    pid: int
    version: str
    socket: str
    chunk_bytes: int
    arena_bytes: int
    arenas: int
    tiers: tuple[TierSnapshot, ...]
    spill_paths: tuple[SpillPathSnapshot, ...]
    sessions: tuple[SessionSnapshot, ...] = field(default=())
    mountpoint: str | None = None
    ended: tuple[EndedSession, ...] = ()  #: the latest, oldest first
    arena_source: str = "memfd"  #: what arenas are made of: "memfd" or "module"
    pressure: PressureSnapshot = NO_PRESSURE_KNOWN
    chunk_source: str = "default"  #: why a chunk is as large as it is: where that was said
    paging: str = "auto"  #: what applications do that are not told otherwise, one of PAGING_MODES
    arenas_ahead: int = 0  #: made before anybody asked, beside `arenas`
