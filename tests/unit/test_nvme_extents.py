# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of tierd.nvme that do no I/O: allocator, superblock, checksums, table."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tests.unit.nvme_harness import arena_of
from tierd.nvme.checksum import Checksums
from tierd.nvme.errors import ExtentError, NoSpace
from tierd.nvme.extents import ExtentAllocator
from tierd.nvme.slots import slot_memory
from tierd.nvme.superblock import BLOCK, State, Superblock, SuperblockError
from tierd.nvme.table import Table


def test_every_extent_is_handed_out_once() -> None:
    extents = ExtentAllocator(3)
    assert {extents.take() for _ in range(3)} == {0, 1, 2}
    assert (extents.total, extents.free, extents.owned) == (3, 0, 3)
    with pytest.raises(NoSpace):
        extents.take()


def test_giving_back_twice_is_refused() -> None:
    extents = ExtentAllocator(1)
    index = extents.take()
    first = extents.generation(index)
    extents.give_back(index)
    with pytest.raises(ExtentError):
        extents.give_back(index)
    assert extents.take() == index
    assert extents.generation(index) != first


@pytest.mark.parametrize("stranger", [1, 2, -1])
def test_extents_that_nobody_took(stranger: int) -> None:
    extents = ExtentAllocator(2)
    assert extents.take() == 0
    with pytest.raises(ExtentError):
        extents.generation(stranger)


def test_a_retired_extent_does_not_come_back() -> None:
    extents = ExtentAllocator(2)
    bad, good = extents.take(), extents.take()
    extents.retire(bad)
    assert (extents.total, extents.free, extents.retired) == (2, 0, 1)
    extents.give_back(bad)
    extents.give_back(good)
    assert (extents.total, extents.free) == (1, 1)
    assert extents.take() == good
    with pytest.raises(NoSpace):
        extents.take()


def test_generations_wrap() -> None:
    extents = ExtentAllocator(1)
    extents._generations[0] = (1 << 32) - 2
    index = extents.take()
    assert extents.generation(index) == (1 << 32) - 1
    extents.give_back(index)
    assert extents.generation(extents.take()) == 1


def test_a_million_extents_are_cheap() -> None:
    """16 TiB in chunks of 16 MiB, all of it taken and given back."""
    count = 1_000_000
    extents, checksums = ExtentAllocator(count), Checksums(count)
    for _ in range(count):
        extents.take()
    for index in range(count):
        extents.give_back(index)
    assert extents.free == count
    held = [*vars(extents).values(), *vars(checksums).values()]
    assert sum(map(sys.getsizeof, held)) < 30 << 20


def test_superblock_round_trip() -> None:
    superblock = Superblock(chunk=1 << 24, generation=7, state=State.OPEN, created=True)
    block = superblock.pack()
    assert len(block) == BLOCK
    assert Superblock.unpack(block) == superblock


@pytest.mark.parametrize("block", [b"", bytes(BLOCK), b"x" * BLOCK, b"GreenBoost"])
def test_other_blocks_are_no_superblock(block: bytes) -> None:
    assert Superblock.unpack(block) is None


def test_superblocks_that_cannot_be_used() -> None:
    block = bytearray(Superblock(1 << 24, 1, State.CLOSED, False).pack())
    block[30] ^= 1
    with pytest.raises(SuperblockError, match="damaged"):
        Superblock.unpack(bytes(block))
    block[16] = 9
    with pytest.raises(SuperblockError, match="version 9, and this program knows 1"):
        Superblock.unpack(bytes(block))
    with pytest.raises(SuperblockError, match="damaged"):
        Superblock.unpack(Superblock(1 << 24, 1, State.CLOSED, False).pack()[:20])


def test_superblocks_differ_by_id() -> None:
    one = Superblock(1, 1, State.OPEN, True)
    assert one != Superblock(1, 1, State.OPEN, True)
    assert replace(one, generation=2).id == one.id


def test_checksums_are_forgotten() -> None:
    checksums = Checksums(2)
    assert checksums.get(1) is None
    checksums[1] = (1 << 64) - 1
    assert checksums.get(1) == (1 << 64) - 1
    del checksums[1]
    assert checksums.get(1) is None


def test_table_finds_consecutive_entries() -> None:
    table = Table(5)
    assert [table.take(2), table.take(2), table.take(1)] == [0, 2, 4]
    with pytest.raises(NoSpace):
        table.take(1)
    table.give_back(0, 2)
    table.give_back(4, 1)
    with pytest.raises(NoSpace):
        table.take(3)
    assert table.take(2) == 0


@pytest.mark.parametrize("slot", [-1, 4, 1 << 40])
def test_slots_that_an_arena_has_not(slot: int) -> None:
    with arena_of(4) as arena, pytest.raises(ValueError, match="has no slot"):
        slot_memory(arena, slot)
