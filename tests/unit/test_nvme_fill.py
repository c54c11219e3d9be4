# SPDX-License-Identifier: GPL-2.0-or-later
"""Chunks that one word fills."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierd.nvme.fill import fill, repeated_word

WORDS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 0xFF, 0x0101010101010101, 2**64 - 1])


@given(WORDS, st.integers(1, 1500), st.integers(0, 7))
def test_what_was_filled_is_found_again(word: int, words: int, misaligned: int) -> None:
    memory = bytearray(b"\xee" * (misaligned + 8 * words + 8))
    view = memoryview(memory)[misaligned:-8][: 8 * words]
    fill(view, word)
    assert view == word.to_bytes(8, sys.byteorder) * words
    assert repeated_word(view) == word
    assert memory[:misaligned] == b"\xee" * misaligned
    assert memory[misaligned + 8 * words :] == b"\xee" * 8


@given(WORDS, st.integers(2, 1500), st.data())
def test_one_other_bit_anywhere_is_noticed(word: int, words: int, data: st.DataObject) -> None:
    memory = bytearray(8 * words)
    fill(memoryview(memory), word)
    memory[data.draw(st.integers(0, len(memory) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert repeated_word(memoryview(memory)) is None


def test_words_of_other_widths_are_not_taken_for_one() -> None:
    assert repeated_word(memoryview(b"abcdabcd" * 64)) is not None
    assert repeated_word(memoryview(b"abcdefghijkl" * 64)) is None
    assert repeated_word(memoryview(b"abcdefghijklmnop" * 64)) is None


def test_the_first_difference_ends_it() -> None:
    data = bytearray(64 << 20)
    data[8] = 1
    begun = time.thread_time()
    for _ in range(100):
        assert repeated_word(memoryview(data)) is None
    assert time.thread_time() - begun < 0.1  # looking at all 6.4 GB takes longer on any machine


@pytest.mark.parametrize("length", [0, 1, 7, 9, 4095])
def test_lengths_that_are_no_words(length: int) -> None:
    with pytest.raises(ValueError, match="no whole number of words"):
        repeated_word(memoryview(bytes(length)))
    with pytest.raises(ValueError, match="no whole number of words"):
        fill(memoryview(bytearray(length)), 0)


def test_memory_that_may_not_be_written() -> None:
    with pytest.raises(BufferError):
        fill(memoryview(bytes(8)), 1)


@pytest.mark.parametrize("word", [-1, 2**64])
def test_words_that_are_none(word: int) -> None:
    with pytest.raises(OverflowError):
        fill(memoryview(bytearray(8)), word)
