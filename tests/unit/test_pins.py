# SPDX-License-Identifier: GPL-2.0-or-later
"""Pins: what people write, and what the shim makes of it."""

from __future__ import annotations

import pytest

from tests.shim.pure_c import library
from tierd import pins
from tierd.pins import Pin, PinError

MIB = 1 << 20
MOST = (1 << 63) - 1


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("size<=64MiB", Pin(False, 0, 64 * MIB)),
        ("size < 64MiB", Pin(False, 0, 64 * MIB - 1)),
        ("size>=1MB", Pin(False, 1_000_000, MOST)),
        ("size>1", Pin(False, 2, MOST)),
        (" size=4096", Pin(False, 4096, 4096)),
        ("size=1MiB..2MiB", Pin(False, MIB, 2 * MIB)),
        ("0x7f00-0x7F40", Pin(True, 0x7F00, 0x7F40)),
    ],
)
def test_a_rule(text: str, pin: Pin) -> None:
    assert pins.parse(text) == pin
    assert pins.parse(str(pin)) == pin


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("64MiB", "is no rule: write size<=64MiB, "),
        ("size<=lots", "'size<=lots': "),
        ("size<=1GiB..2GiB", "a range is written size=1GiB..2GiB"),
        ("size=2MiB..1MiB", "no allocation has such a size"),
        ("size<1", "no allocation has such a size"),
        ("size<=0", "no allocation has such a size"),
        ("size=9223372036854775808", "no allocation has such a size"),
        ("0x7f40-0x7f00", "the range is empty"),
        ("0x7f40", "is no rule"),
        ("7f00-7f40", "is no rule"),
    ],
)
def test_what_is_no_rule(text: str, says: str) -> None:
    with pytest.raises(PinError) as refusal:
        pins.parse(text)
    assert says in str(refusal.value)


def test_many_rules() -> None:
    assert pins.parse_all(["size=1,size=2", "size=3", ""]) == tuple(Pin(False, n, n) for n in (1, 2, 3))
    with pytest.raises(PinError, match="33 rules are too many: at most 32"):
        pins.parse_all(["size=1"] * 33)


def test_the_shim_reads_what_is_written_for_it() -> None:
    ffi, lib = library()
    rules = pins.parse_all(["size<=64MiB", "size>1GiB", "0x7f0000000000-0x7f0000200000"])
    c = ffi.new("struct pins *")
    assert lib.pins_parse(c, ",".join(map(str, rules)).encode())
    found = [c.rules[i] for i in range(c.count)]
    assert [Pin(pin.by_address, pin.low, pin.high) for pin in found] == list(rules)

    def first(size: int, address: int) -> int | None:
        pin = lib.pins_find(c, size, address, 2 * MIB)
        return None if pin == ffi.NULL else int(pin - c.rules)

    assert first(64 * MIB, 0) == 0
    assert first(64 * MIB + 1, 0) is None
    assert first(2 << 30, 0x7F0000000000) == 1
    assert first(1 << 30, 0x7F0000000000) == 2
    assert first(1 << 30, 0x7F0000000000 - 2 * MIB) is None
    assert first(1 << 30, 0x7F0000000000 - MIB) == 2
    assert first(1 << 30, 0x7F0000200000) is None


@pytest.mark.parametrize("text", ["size=1", "size=1..", "size=1..2;", "lots", "1-", "size=1..2,,", ",1-2"])
def test_the_shim_refuses_the_rest(text: str) -> None:
    ffi, lib = library()
    assert not lib.pins_parse(ffi.new("struct pins *"), text.encode())


def test_the_shim_takes_as_many_as_are_written() -> None:
    ffi, lib = library()
    for count in (pins.MAX_PINS, pins.MAX_PINS + 1):
        text = ",".join(["size=1..2"] * count).encode()
        assert lib.pins_parse(ffi.new("struct pins *"), text) == (count <= pins.MAX_PINS)
