# SPDX-License-Identifier: GPL-2.0-or-later
"""A session's state memfd, read: counters and one letter a chunk, written by the shim at any time.

Read with pread and never mapped. A mapping would save a microsecond a look and would let whoever
made the memfd stop the daemon with SIGBUS (a hole in hugetlbfs without pages) or have it charged for
the holes it looks at; pread gives zeros for both.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Mapping

from .model import ChunkState, Tier
from .wire import COUNTERS, MAX_STATE_CHUNKS, STATE_HEADER_BYTES, STATE_MAGIC, STATE_VERSION

__all__ = ["StateError", "StateMap"]

_FIXED = struct.Struct("<IIQ")
_HEADER = struct.Struct(f"<IIQ{len(COUNTERS)}Q")

# A chunk on its way up has its slot in VRAM, one on its way down has its place below already.
_TIER_LETTERS = {
    Tier.T1: (ChunkState.T1, ChunkState.RISING, ChunkState.PINNED),
    Tier.T2: (ChunkState.T2, ChunkState.SINKING, ChunkState.MAPPED),
    Tier.T3: (ChunkState.T3,),
}
# What a shim writes goes to terminals and files: nothing but the letters gets through.
_KNOWN = bytes(
    letter if bytes([letter]) in {s.value for s in ChunkState} else ord("?") for letter in range(256)
)


class StateError(Exception):
    """The memfd is not what the protocol wants; `name` is the errno name to refuse it with."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class StateMap:
    """Owns `fd` from the moment it is made, also when that raises StateError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            self.chunks = _verify(fd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the memfd. May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def counters(self) -> Mapping[str, int]:
        """The counters by name."""
        return dict(zip(COUNTERS, _HEADER.unpack(os.pread(self._fd, _HEADER.size, 0))[3:], strict=True))

    def letters(self, first: int, count: int) -> str:
        """One ChunkState letter a chunk; ``?`` for a byte that is none."""
        raw = os.pread(self._fd, count, STATE_HEADER_BYTES + first)
        return raw.translate(_KNOWN).decode("ascii")

    def resident(self, upto: int) -> Mapping[Tier, int]:
        """Chunks in each tier, among the first `upto`."""
        raw = os.pread(self._fd, min(upto, self.chunks), STATE_HEADER_BYTES)
        return {tier: sum(map(raw.count, letters)) for tier, letters in _TIER_LETTERS.items()}


def _verify(fd: int) -> int:
    """The number of chunk bytes in the memfd `fd`. Raises StateError."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        # Also a matter of safety: reading some other kind of file may block for ever.
        raise StateError("EPERM", "the state must be a memfd") from None
    if not seals & fcntl.F_SEAL_SHRINK:
        raise StateError("EPERM", "the state memfd must be sealed with F_SEAL_SHRINK")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        raise StateError("EPERM", "the state memfd must be readable")
    size = os.fstat(fd).st_size
    if size < STATE_HEADER_BYTES:
        raise StateError("EINVAL", f"the state memfd has {size} bytes, its header alone {STATE_HEADER_BYTES}")
    magic, version, chunks = _FIXED.unpack(os.pread(fd, _FIXED.size, 0))
    if magic != STATE_MAGIC or version != STATE_VERSION:
        raise StateError("EINVAL", f"the state memfd has magic {magic:#x} and version {version}")
    if not 1 <= chunks <= MAX_STATE_CHUNKS or size < STATE_HEADER_BYTES + chunks:
        raise StateError("EINVAL", f"the state memfd of {size} bytes cannot have {chunks} chunk bytes")
    return int(chunks)
