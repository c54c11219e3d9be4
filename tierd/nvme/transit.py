# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots of T3's own, for bytes that are on their way from one form or path to another."""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from .slots import Arena

__all__ = ["TRANSIT_SLOTS", "Transit"]

TRANSIT_SLOTS = 4
"""Enough that a device is busy while others are being enciphered or read; memory beyond T2's limit."""


class _Arena:
    def __init__(self, id: int, chunk: int) -> None:
        self.id = id
        self.chunk = chunk
        self.size = TRANSIT_SLOTS * chunk
        self._mapping = mmap.mmap(-1, self.size)
        self.memory = memoryview(self._mapping)

    def close(self) -> None:
        self.memory.release()
        self._mapping.close()


class Transit:
    """An arena that exists while somebody uses it; `register` and `unregister` tell the rings of it.

    Who waits for a slot of one Transit must not hold another of it, or all could wait for each other.
    `id` is the arena's, which no session's has.
    """

    def __init__(
        self, id: int, chunk: int, *, register: Callable[[Arena], None], unregister: Callable[[Arena], None]
    ) -> None:
        self._id = id
        self._chunk = chunk
        self._register = register
        self._unregister = unregister
        self._arena: _Arena | None = None
        self._users = 0
        self._free = list(range(TRANSIT_SLOTS))
        self._slots = trio.Semaphore(TRANSIT_SLOTS)

    def open(self) -> None:
        """One more needs it. Raises OSError and what `register` does."""
        if self._arena is None:
            arena = _Arena(self._id, self._chunk)
            try:
                self._register(arena)
            except BaseException:
                arena.close()
                raise
            self._arena = arena
        self._users += 1

    def close(self) -> None:
        """One less needs it; no slot of theirs is in use."""
        self._users -= 1
        if not self._users and self._arena is not None:
            arena, self._arena = self._arena, None
            self._unregister(arena)
            arena.close()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[tuple[Arena, int]]:
        """A slot that nobody else uses meanwhile; waits for one."""
        assert self._arena is not None
        async with self._slots:
            slot = self._free.pop()
            try:
                yield self._arena, slot
            finally:
                self._free.append(slot)
