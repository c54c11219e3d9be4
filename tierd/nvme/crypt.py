# SPDX-License-Identifier: GPL-2.0-or-later
"""Encryption at rest for content that nobody needs after the daemon's end: AES-256-XTS.

The key is random, lives in memory alone and goes with the Cipher, so what a path holds afterwards is
noise. XTS keeps the length, as a chunk's place demands; it hides content and proves nothing, which
is the checksum's part.

Library: PyPI's cryptography, from version 50, which is the first to let go of the GIL here. Measured
with a second thread and sys.setswitchinterval(1): a call of 16 MiB that lets go comes back after a
second, one that does not after 4 ms; 44, 46, 47, 48 and 49 did not let go (November 2026). On an AMD
EPYC with VAES it encrypts 4.2 to 5.2 GB/s of one core's time at 1 MiB a call and more, 3 at 64 KiB
and 0.35 at 4 KiB, for each call costs 13 us of Python. So encryption costs 0.2 to 0.24 core a GB/s.
OpenSSL's libcrypto through our own extension did no better from 1 MiB on (4.6 to 5.2 GB/s, 4 to 4.3
in units of 4 KiB), and would tie the extension to the distribution's OpenSSL.
"""

from __future__ import annotations

import mmap
import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ._uring import ffi, lib

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.algorithms import AES

__all__ = ["UNIT", "Cipher", "CipherMissing"]

UNIT = 16 << 20
"""Bytes encrypted under one tweak: the most that IEEE 1619 allows, 2**20 blocks.

The largest is the best, because every call pays Python's overhead and may have to wait for the GIL
when it returns. A last unit may be shorter.
"""

_KEY = 64
"""Bytes of a key: two AES-256 keys, one for the data and one for the tweaks."""

_BLOCK = 16


class CipherMissing(ImportError):
    """The library that encrypts is not installed; the message says how to install it."""


class Cipher:
    """Encrypts extents under a key of its own. Any number of threads may use it at the same time.

    The key is kept in a page that is locked in memory where RLIMIT_MEMLOCK permits (see `locked`),
    left out of core dumps, and overwritten by close(). What this cannot promise: while a call runs,
    OpenSSL has the expanded key on the heap, and wipes it at the end; that could be swapped out in
    between. Who may read this process's memory can read the key, and the data besides.

    `key` is for tests with known answers. Raises CipherMissing.
    """

    def __init__(self, key: bytes | None = None) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher as Context
            from cryptography.hazmat.primitives.ciphers import algorithms, modes
        except ImportError as error:
            raise CipherMissing(
                "encryption needs the Python package cryptography, version 50 or newer; "
                "install it with: pip install 'greenboost[crypt]'"
            ) from error
        if key is not None and len(key) != _KEY:
            raise ValueError(f"a key has {_KEY} bytes, not {len(key)}")
        self._context = Context
        self._mode = modes.XTS
        self._page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page.madvise(mmap.MADV_DONTDUMP)
        self._page.madvise(mmap.MADV_DONTFORK)
        with ffi.from_buffer("char[]", self._page) as address:
            self.locked = lib.gb_lock(address, mmap.PAGESIZE) == 0  #: whether it cannot be swapped out
        self._key = memoryview(self._page)[:_KEY]
        if key is None:
            _randomize(self._key)
        else:
            self._key[:] = key
        self._aes: AES | None = algorithms.AES(self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forgets the key, and with it everything that was encrypted. Closing twice is allowed."""
        if self._aes is None:
            return
        self._aes = None
        self._key[:] = bytes(_KEY)
        self._key.release()
        self._page.close()

    def encrypt(self, index: int, generation: int, source: memoryview, target: memoryview) -> None:
        """Encrypts what goes to extent `index`; source and target are the same memory or apart.

        `generation` is less than 2**64 and another one for each content of the extent: under the
        same key, index and generation two contents would show in which blocks they are equal. The
        length is a multiple of 16. Lets go of the GIL; a large chunk is for a thread.

        Raises ValueError, also when the cipher was closed.
        """
        self._transform(True, index, generation, source, target)

    def decrypt(self, index: int, generation: int, source: memoryview, target: memoryview) -> None:
        """The reverse of encrypt(), with the same index and generation."""
        self._transform(False, index, generation, source, target)

    def _transform(
        self, encrypt: bool, index: int, generation: int, source: memoryview, target: memoryview
    ) -> None:
        aes = self._aes
        if aes is None:
            raise ValueError("the cipher was closed")
        length = source.nbytes
        if length != target.nbytes or not length or length % _BLOCK:
            raise ValueError(f"cannot encrypt {length} bytes into {target.nbytes}: {_BLOCK} go into {_BLOCK}")
        for number, start in enumerate(range(0, length, UNIT)):
            context = self._context(aes, self._mode(_tweak(index, generation, number)))
            step = context.encryptor() if encrypt else context.decryptor()
            step.update_into(source[start : start + UNIT], target[start : start + UNIT])


def _tweak(index: int, generation: int, unit: int) -> bytes:
    """16 bytes that no other unit, extent or generation has."""
    if not (0 <= generation < 1 << 64 and 0 <= index < 1 << 40 and unit < 1 << 24):
        raise ValueError(f"no tweak for unit {unit} of extent {index} in generation {generation}")
    return (generation | index << 64 | unit << 104).to_bytes(16, "little")


def _randomize(memory: memoryview) -> None:
    """From the kernel straight into the memory: os.getrandom() would leave a copy on the heap."""
    fd = os.open("/dev/urandom", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.readv(fd, [memory]) != memory.nbytes:  # promised for so few bytes, see random(4)
            raise OSError("/dev/urandom gave too few bytes")
    finally:
        os.close(fd)
