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

__all__ = ["Checksums", "digest", "digest_in_thread_if_large", "digest_while"]

_INLINE = 16 << 20
"""Up to here, bytes, a checksum takes less time than handing it to a thread and back is worth."""


def digest(memory: memoryview) -> int:
    """The checksum of the bytes, 64 bits."""
    return xxhash.xxh3_64_intdigest(memory)


async def digest_in_thread_if_large(memory: memoryview) -> int:
    """The same without stopping trio's thread for long. The bytes must not change meanwhile."""
    if len(memory) <= _INLINE:
        return digest(memory)
    # Not abandoned when cancelled: the thread reads memory that its owner may reuse afterwards.
    return await trio.to_thread.run_sync(digest, memory)


async def digest_while(
    memory: memoryview, transfer: Callable[[Callable[[], None] | None], Awaitable[None]]
) -> int:
    """The checksum of bytes that `transfer` reads too, taken while the device is busy if possible.

    `transfer` is handed what it is to call as soon as the kernel has the request; see Ring.write().
    """
    if len(memory) > _INLINE:
        checksum = await digest_in_thread_if_large(memory)
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
