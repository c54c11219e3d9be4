# SPDX-License-Identifier: GPL-2.0-or-later
"""The state memfd: what is accepted, what is read, and that a hostile one does no harm."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from tests.unit.fake_shim import new_state
from tierd.model import Tier
from tierd.statemap import StateError, StateMap
from tierd.wire import COUNTERS, MAX_STATE_CHUNKS, STATE_HEADER_BYTES

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


def header(fd: int, *, magic: int = 0x54534247, version: int = 1, chunks: int = 8) -> int:
    os.pwrite(fd, struct.pack("<IIQ", magic, version, chunks), 0)
    return fd


def test_counters_letters_and_tiers() -> None:
    fd = new_state(16)
    os.pwrite(fd, struct.pack(f"<{len(COUNTERS)}Q", *range(100, 100 + len(COUNTERS))), 16)
    os.pwrite(fd, b"11^2v3.\0\x1b1mp", STATE_HEADER_BYTES)
    state = StateMap(fd)
    assert state.chunks == 16
    assert state.counters() == {name: 100 + n for n, name in enumerate(COUNTERS)}
    assert state.letters(0, 12) == "11^2v3.\0?1mp"
    assert state.resident(16) == {Tier.T1: 5, Tier.T2: 3, Tier.T3: 1}
    assert state.resident(3) == {Tier.T1: 3, Tier.T2: 0, Tier.T3: 0}
    state.close()
    state.close()


def test_looking_allocates_nothing() -> None:
    fd = new_state(1 << 24)
    state = StateMap(fd)
    before = os.fstat(fd).st_blocks
    assert sum(state.resident(1 << 24).values()) == 0
    assert os.fstat(fd).st_blocks == before
    state.close()


def test_it_must_be_a_memfd(disk: Path) -> None:
    with open(disk / "f", "wb") as file:
        fd = os.dup(file.fileno())
    with pytest.raises(StateError, match="must be a memfd") as refusal:
        StateMap(fd)
    assert refusal.value.name == "EPERM"


def test_it_must_be_sealed_against_shrinking() -> None:
    with pytest.raises(StateError, match="F_SEAL_SHRINK") as refusal:
        StateMap(new_state(8, seals=fcntl.F_SEAL_GROW))
    assert refusal.value.name == "EPERM"


def test_it_must_be_readable() -> None:
    fd = new_state(8)
    write_only = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    os.close(fd)
    with pytest.raises(StateError, match="readable"):
        StateMap(write_only)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"magic": 1}, "magic 0x1"),
        ({"version": 2}, "version 2"),
        ({"chunks": 0}, "cannot have 0 chunk"),
        ({"chunks": 9}, "cannot have 9 chunk"),
        ({"chunks": MAX_STATE_CHUNKS + 1}, "cannot have"),
        ({"chunks": 2**64 - 1}, "cannot have"),
    ],
)
def test_its_header_must_be_right(change: dict[str, int], text: str) -> None:
    with pytest.raises(StateError, match=text) as refusal:
        StateMap(header(new_state(8), **change))
    assert refusal.value.name == "EINVAL"


def test_it_must_have_a_header() -> None:
    fd = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(StateError, match="has 0 bytes, its header alone 4096"):
        StateMap(fd)
