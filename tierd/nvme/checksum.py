# SPDX-License-Identifier: GPL-2.0-or-later
"""One checksum an extent, kept in memory: what a spill path returns is proven or refused.

XXH3 runs at the speed of memory (41 GB/s on one core with AVX-512, against 22 for CRC-32C and 7 for
zlib's CRC-32, measured on 2 MiB) and its Python binding releases the GIL.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable

import trio
import xxhash

__all__ = ["Checksums", "Digest", "digest", "digest_while"]

_INLINE = 16 << 20
"""Up to here, bytes, a checksum takes less time than handing it to a thread and back is worth."""


def digest(memory: memoryview) -> int:
    """The checksum of the bytes, 64 bits."""
    return xxhash.xxh3_64_intdigest(memory)


class Digest:
    """The same of bytes that arrive one after the other, without stopping trio's thread for long."""

    __slots__ = ("_hash", "_memory", "_taken")

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._hash = xxhash.xxh3_64()
        self._taken = 0  # bytes

    def take(self, arrived: int) -> None:
        """So many of the first bytes are there and do not change any more."""
        self._take(min(arrived, self._taken + _INLINE))

    async def finish(self) -> int:
        """The checksum, now that all of them are there."""
        length = len(self._memory)
        if length - self._taken <= _INLINE:
            self._take(length)
        else:
            # Not abandoned when cancelled: the thread reads memory that its owner may reuse afterwards.
            await trio.to_thread.run_sync(self._take, length)
        return self._hash.intdigest()

    def _take(self, end: int) -> None:
        if end > self._taken:
            self._hash.update(self._memory[self._taken : end])
            self._taken = end


async def digest_while(
    memory: memoryview, transfer: Callable[[Callable[[], None] | None], Awaitable[None]]
) -> int:
    """The checksum of bytes that `transfer` reads too, taken while the device is busy if possible.

    `transfer` is handed what it is to call as soon as the kernel has the request; see Ring.write().
    """
    if len(memory) > _INLINE:
        checksum = await Digest(memory).finish()
        await transfer(None)
        return checksum
    taken: list[int] = []
    await transfer(lambda: taken.append(digest(memory)))
    return taken[0]


class Checksums:
    """The checksums of `count` extents, as far as something is stored in them."""

    def __init__(self, count: int) -> None:
        self._sums = array("Q", bytes(8 * count))
        self._known = bytearray(count)

    def __setitem__(self, index: int, checksum: int) -> None:
        self._sums[index] = checksum
        self._known[index] = 1

    def __delitem__(self, index: int) -> None:
        """Nothing is stored in the extent from now on."""
        self._known[index] = 0

    def get(self, index: int) -> int | None:
        """The checksum of what the extent holds; None when it holds nothing."""
        return self._sums[index] if self._known[index] else None
