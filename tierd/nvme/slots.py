# SPDX-License-Identifier: GPL-2.0-or-later
"""What the NVMe tier needs to know of an arena."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Arena", "slot_memory", "slot_offset"]


class Arena(Protocol):
    """Shared memory divided into chunk-sized slots; slot n is its bytes from n * chunk."""

    @property
    def id(self) -> int:
        """Its number, which no other arena of the process has at the same time."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def chunk(self) -> int:
        """Bytes of a slot."""

    @property
    def memory(self) -> memoryview:
        """The whole of it, mapped shared and writable."""


def slot_offset(arena: Arena, slot: int) -> int:
    """Where the slot begins, bytes. Raises ValueError when the arena has no such slot."""
    if not 0 <= slot < arena.size // arena.chunk:
        raise ValueError(f"arena {arena.id} has no slot {slot}: it has {arena.size // arena.chunk}")
    return slot * arena.chunk


def slot_memory(arena: Arena, slot: int) -> memoryview:
    """The slot's bytes."""
    offset = slot_offset(arena, slot)
    return arena.memory[offset : offset + arena.chunk]
