# SPDX-License-Identifier: GPL-2.0-or-later
"""Chunks that one 64-bit word fills: they are known by the word and need no place on any device.

Ordinary data differs within its first words, which costs a microsecond, nearly all of it Python's.
"""

from __future__ import annotations

from ._uring import ffi, lib

__all__ = ["WORD", "fill", "repeated_word"]

WORD = 8
"""Bytes of a word."""


def repeated_word(memory: memoryview) -> int | None:
    """The word, in the machine's byte order, that fills the whole memory; None when none does.

    The length is a multiple of WORD and not 0, or ValueError is raised. The memory must not change
    meanwhile. Without the GIL, at the speed of memory, up to the first difference.
    """
    _check(memory)
    word = ffi.new("uint64_t *")
    with ffi.from_buffer("char[]", memory) as address:
        same = lib.gb_repeated_word(address, memory.nbytes, word)
    return int(word[0]) if same else None


def fill(memory: memoryview, word: int) -> None:
    """Makes every word of the memory this one. Demands and costs what repeated_word() does."""
    _check(memory)
    with ffi.from_buffer("char[]", memory, require_writable=True) as address:
        lib.gb_fill(address, memory.nbytes, word)


def _check(memory: memoryview) -> None:
    if not memory.nbytes or memory.nbytes % WORD:
        raise ValueError(f"{memory.nbytes} bytes are no whole number of words of {WORD} bytes")
