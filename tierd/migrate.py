# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves a session's chunks between its arena slots and T3, and knows which extent holds which chunk.

At most one operation per chunk is under way. SpillSet lets no operation end, cancelled or not, while
the device still works on it; so when the tasks of a session are over, the kernel no longer touches
its arenas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from .arena import Arena
from .nvme.errors import NoSpace, SpillWriteError
from .nvme.spillset import SpillSet, Stored
from .policy import Refused

__all__ = ["Migrator", "MigratorStatistics", "Records"]


@dataclass(frozen=True, slots=True)
class MigratorStatistics:
    """What was moved so far."""

    written: int  #: bytes to T3
    read: int  #: bytes from T3
    held: int  #: extents in use, those under way included
    most_held: int  #: extents that held a chunk when they were most
    under_way: int  #: operations


class Records(Protocol):
    """Who writes down where chunks are."""

    def store(self, chunk: int, stored: Stored, /) -> None:
        """The chunk is there from now on."""

    def forget(self, chunks: Sequence[int], /) -> None:
        """T3 no longer holds these chunks."""


class Migrator:
    """One session's chunks in T3.

    `reserve` is asked before an extent is taken and may raise Refused; `returned` is told how many
    were given back. `records` hears where each chunk is, before whoever asked for that does, and that it
    is nowhere before its extent is another's.
    """

    def __init__(
        self,
        store: SpillSet,
        *,
        reserve: Callable[[], None],
        returned: Callable[[int], None],
        records: Records | None = None,
    ) -> None:
        self._store = store
        self._records = records
        self._reserve = reserve
        self._returned = returned
        self._stored: dict[int, Stored] = {}
        self._moving: set[int] = set()
        self._spilling = 0
        self._most_held = 0
        self._written = 0
        self._read = 0

    def statistics(self) -> MigratorStatistics:
        """The figures now."""
        held = len(self._stored) + self._spilling
        return MigratorStatistics(self._written, self._read, held, self._most_held, len(self._moving))

    async def spill(self, chunk: int, arena: Arena, slot: int) -> None:
        """Write the slot to an extent that holds `chunk` from then on.

        Raises Refused: EBUSY, EEXIST when T3 holds the chunk already, ENOSPC, EIO.
        """
        self._check_idle(chunk)
        if chunk in self._stored:
            raise Refused("EEXIST", f"T3 holds chunk {chunk} already: fetch or drop it first")
        self._moving.add(chunk)
        self._spilling += 1
        try:
            stored = await self._write(chunk, arena, slot)
        finally:
            self._spilling -= 1
            self._moving.discard(chunk)
        self._keep(chunk, stored)
        self._most_held = max(self._most_held, len(self._stored))
        self._written += arena.chunk

    def inherit(self, stored: Mapping[int, Stored]) -> None:
        """What T3 holds from before, and is written down; each is counted as reserved."""
        for chunk, its in stored.items():
            self._know(chunk, its)
        self._most_held = max(self._most_held, len(self._stored))

    def _keep(self, chunk: int, stored: Stored) -> None:
        self._know(chunk, stored)
        if self._records is not None:
            self._records.store(chunk, stored)

    def _know(self, chunk: int, stored: Stored) -> None:
        self._stored[chunk] = stored
        if self._records is not None:
            stored.moved = partial(self._records.store, chunk)

    @property
    def held(self) -> Iterable[int]:
        """The chunks that T3 holds."""
        return self._stored.keys()

    def leave(self) -> Mapping[int, Stored]:
        """Everything stays where it is, and is the caller's. Nothing may be under way."""
        assert not self._moving
        stored, self._stored = self._stored, {}
        return stored

    async def _write(self, chunk: int, arena: Arena, slot: int) -> Stored:
        """Where the slot's bytes are stored now."""
        self._reserve()
        try:
            return await self._store.store(arena, slot)
        except BaseException as error:
            self._returned(1)
            if isinstance(error, NoSpace):
                raise Refused("ENOSPC", str(error)) from error
            if isinstance(error, SpillWriteError):
                raise Refused("EIO", f"chunk {chunk} could not be written: {error.strerror}") from error
            raise

    async def fetch(self, chunk: int, arena: Arena, slot: int) -> None:
        """Read `chunk` into the slot; T3 holds it still. Raises Refused: EBUSY, ENOENT, EIO."""
        self._check_idle(chunk)
        stored = self._stored.get(chunk)
        if stored is None:
            raise Refused("ENOENT", f"T3 does not hold chunk {chunk}")
        self._moving.add(chunk)
        try:
            await self._store.load(stored, arena, slot)
        except OSError as error:
            raise Refused("EIO", f"chunk {chunk} could not be read: {error}") from error
        finally:
            self._moving.discard(chunk)
        self._read += arena.chunk

    def drop(self, chunk: int) -> None:
        """Forget what T3 holds of `chunk`, if anything. Raises Refused: EBUSY."""
        self._check_idle(chunk)
        if chunk in self._stored:
            self.drop_all([chunk])

    def drop_range(self, first: int, chunks: int) -> None:
        """Forget what T3 holds of a freed allocation. Raises Refused: EBUSY; nothing is forgotten then."""
        after = first + chunks
        # The smaller of the two: an allocation may have a million chunks and T3 hold ten of them.
        if chunks < len(self._stored):
            held = [chunk for chunk in range(first, after) if chunk in self._stored]
        else:
            held = [chunk for chunk in self._stored if first <= chunk < after]
        for chunk in self._moving:
            if first <= chunk < after:
                raise Refused("EBUSY", f"chunk {chunk} is being moved")
        self.drop_all(held)

    def drop_all(self, chunks: Sequence[int]) -> None:
        """Forget what T3 holds of these chunks: it holds them, and none is being moved."""
        if self._records is not None and chunks:
            self._records.forget(chunks)
        self._return(chunks)

    def close(self) -> None:
        """Give every extent back; nothing of them is written down any more. Nothing may be under way."""
        assert not self._moving
        self._return(list(self._stored))

    def _check_idle(self, chunk: int) -> None:
        if chunk in self._moving:
            raise Refused("EBUSY", f"chunk {chunk} is being moved")

    def _return(self, chunks: Sequence[int]) -> None:
        for chunk in chunks:
            self._store.give_back(self._stored.pop(chunk))
        if chunks:
            self._returned(
                len(chunks)
            )  # at once: it costs more than the rest, and nobody is served meanwhile
