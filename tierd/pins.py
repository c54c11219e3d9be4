# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that say which memory stays in VRAM: by the size of an allocation, or by address.

size<=64MiB  size<64MiB  size>=1GiB  size>1GiB  size=4096  size=1GiB..2GiB
0x7f0000000000-0x7f0040000000       from the first address up to before the second
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .model import SizeError, parse_size

__all__ = ["MAX_PINS", "Pin", "PinError", "parse", "parse_all"]

MAX_PINS = 32
"""Rules that the shim takes."""
_MOST = (1 << 63) - 1
_SIZE = re.compile(r"size\s*(<=|>=|<|>|=)\s*(.+)")
_ADDRESSES = re.compile(r"0[xX]([0-9a-fA-F]{1,16})-0[xX]([0-9a-fA-F]{1,16})")


class PinError(Exception):
    """Not a rule, or one that nothing can meet; the text says what and why."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Allocations of `low` to `high` bytes or, `by_address`, what lies in [low, high)."""

    by_address: bool
    low: int
    high: int

    def __str__(self) -> str:
        """The rule in numbers alone, as the shim reads it."""
        return f"{self.low:#x}-{self.high:#x}" if self.by_address else f"size={self.low}..{self.high}"


def parse(text: str) -> Pin:
    """One rule. Raises PinError."""
    text = text.strip()
    if match := _ADDRESSES.fullmatch(text):
        pin = Pin(True, *(int(digits, 16) for digits in match.groups()))
        if pin.low >= pin.high:
            raise PinError(f"{text!r}: the range is empty: it ends before {pin.high:#x}")
        return pin
    match = _SIZE.fullmatch(text)
    if match is None:
        raise PinError(f"{text!r} is no rule: write size<=64MiB, size=1GiB..2GiB or 0x7f0000000-0x7f8000000")
    how, sizes = match.groups()
    first, dots, second = sizes.partition("..")
    if dots and how != "=":
        raise PinError(f"{text!r}: a range is written size={sizes}")
    try:
        low = parse_size(first.strip())
        high = parse_size(second.strip()) if dots else low
    except SizeError as error:
        raise PinError(f"{text!r}: {error}") from None
    if how in ("<", "<="):
        low, high = 0, high - (how == "<")
    elif how in (">", ">="):
        low, high = low + (how == ">"), _MOST
    if low > high or high > _MOST or high < 1:
        raise PinError(f"{text!r}: no allocation has such a size")
    return Pin(False, low, high)


def parse_all(texts: Sequence[str]) -> tuple[Pin, ...]:
    """All rules; each text may hold several, separated by commas. Raises PinError."""
    pins = tuple(parse(part) for text in texts for part in text.split(",") if part.strip())
    if len(pins) > MAX_PINS:
        raise PinError(f"{len(pins)} rules are too many: at most {MAX_PINS}")
    return pins
