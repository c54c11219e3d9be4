# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes, as people write them and read them."""

from __future__ import annotations

import pytest

from tierd.model import ChunkState, SizeError, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("0", 0),
        (" 12 GiB ", 12 << 30),
        ("12gib", 12 << 30),
        ("31.8GB", 31_800_000_000),
        ("1.5KiB", 1536),
        ("2TiB", 2 << 40),
        ("9007199254740993B", 9007199254740993),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_percentage_is_of_the_whole() -> None:
    assert parse_size("80%", whole=1000) == 800
    assert parse_size("12.5%", whole=1000) == 125


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a size"),
        ("GiB", "not a size"),
        ("-1", "not a size"),
        ("1e3", "not a size"),
        ("0x10", "not a size"),
        ("1,5GiB", "not a size"),
        ("12 parsecs", "unknown unit 'parsecs'"),
        ("1.5B", "not a whole number of bytes"),
        ("1.5", "not a whole number of bytes"),
        ("80%", "a percentage has no meaning here"),
        ("9" * 400 + ".5GiB", "a number of 402 digits is no size"),
        ("9" * 5000, "a number of 5000 digits is no size"),
    ],
)
def test_what_is_no_size(text: str, message: str) -> None:
    with pytest.raises(SizeError, match=message):
        parse_size(text)


def test_more_than_the_whole() -> None:
    with pytest.raises(SizeError, match="more than the whole"):
        parse_size("101%", whole=10)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (56 << 20, "56.0 MiB"), (1 << 50, "1024.0 TiB")],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


def test_chunk_states_are_one_byte_each() -> None:
    assert all(len(state.value) == 1 for state in ChunkState)
    assert len({state.value for state in ChunkState}) == len(ChunkState)
