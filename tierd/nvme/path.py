# SPDX-License-Identifier: GPL-2.0-or-later
"""One spill path in use: its extents, what is stored in them, and how its device fares.

Invariants, across every await:

- An extent is free, or holds one chunk (owners), or is being written, or is retired.
- An extent that the kernel may still read or write is *pinned*, and free only once it is not: a late
  write of a device that had stalled must not land in the next owner's bytes.
- A read returns what was written, or raises.
"""

from __future__ import annotations

import errno
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from tierd.model import SpillPathSnapshot

from .budget import Budget
from .checksum import Checksums, Digest
from .crypt import Cipher
from .errors import ExtentError
from .extents import ExtentAllocator
from .health import Health, PathState, is_ours
from .notice import Notice
from .ring import Abandoned, Ring
from .slots import Arena, slot_memory
from .spillfile import SpillFile
from .transit import Transit

__all__ = ["Place", "SpillPath", "Stored", "lost"]

_log = logging.getLogger(__name__)

_LOST = -2

_READ_TRIES = 2
"""Times that a read is tried: a bus may fail once, and a bit may flip on the way."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk is in T3, in words that another daemon understands."""

    path: uuid.UUID | None  #: of the superblock; None: no device holds it
    index: int  #: the extent, or the word that fills the chunk
    generation: int = 0  #: of the extent
    checksum: int = 0  #: of the chunk, 64 bits


class Stored:
    """Where a chunk is in T3; its owner loads it and gives it back, and it may be moved meanwhile.

    `path` is None for what no device holds: then `index` is the word that fills the chunk, or less
    than 0 where there is nothing.
    """

    __slots__ = ("index", "moved", "path", "secret")

    def __init__(self, path: SpillPath | None, index: int) -> None:
        self.path = path
        self.index = index  #: the extent
        self.secret = False  #: the word that fills it is not to be written down
        self.moved: Callable[[Stored], None] | None = None  #: called when it is elsewhere, or lost

    @property
    def place(self) -> Place | None:
        """Where it is; None where it cannot be had without this process: encrypted, secret or lost."""
        if self.path is not None:
            return self.path.place(self.index)
        return Place(None, self.index) if self.index >= 0 and not self.secret else None

    @property
    def lost(self) -> bool:
        """Whether it was given up: see SpillPath.lose()."""
        return self.index == _LOST


def lost() -> Stored:
    """What cannot be had any more."""
    return Stored(None, _LOST)


class SpillPath:
    """A file or device that is open, with its ring.

    `changed` is told whenever there may be room, or one more chunk to move, where there was none.
    """

    def __init__(
        self,
        file: SpillFile,
        ring: Ring,
        ciphering: Transit,
        changed: Notice,
    ) -> None:
        self.file = file
        self.ring = ring
        self.options = file.options
        self.extents = ExtentAllocator(file.extents)
        self.owners: list[Stored | None] = [None] * file.extents
        self.health = Health()
        self.budget = Budget(file.options.daily_writes, file.chunk)
        self.rate: float | None = None  #: measured, bytes/s; see probe.py
        self.assumed_rate = 1.0  #: where it could not be measured
        self.credit = 0.0  # striping's
        self.ready = True  #: False while nothing but measuring may use it
        self.emptying = Notice()  #: told when what it holds is to be moved elsewhere
        self.removals = 0  #: that wait for it to be empty
        self.leave = trio.Event()  #: it is to be taken out of use
        self.gone = trio.Event()  #: it is closed, or nothing drives its ring any more
        self._cipher = Cipher() if file.options.encrypt else None
        self._ciphering = ciphering
        self._changed = changed
        self._checksums = Checksums(file.extents)
        self._pins: dict[int, int] = {}
        self._leaving: set[int] = set()  # extents to be given back once they are not pinned

    def close(self) -> None:
        """Forgets the key, if there is one. The file and the ring are closed by whoever made them."""
        if self._cipher is not None:
            self._cipher.close()

    @property
    def name(self) -> str:
        """What it is called."""
        return self.file.path

    @property
    def state(self) -> PathState:
        """What it is good for."""
        return self.health.state

    @property
    def takes(self) -> bool:
        """Whether a chunk can be written to it now."""
        return self.ready and self.state is PathState.ACTIVE and self.extents.free > 0

    @property
    def counts(self) -> bool:
        """Whether its room may be promised to anybody."""
        return self.ready and not self.empties

    @property
    def empties(self) -> bool:
        """Whether what it holds is to be moved elsewhere."""
        return self.state in (PathState.DRAINING, PathState.FAILED)

    @property
    def room_to_come(self) -> bool:
        """Whether it will take chunks as soon as its device answers."""
        return self.state in (PathState.ACTIVE, PathState.STALLED) and bool(
            self._leaving or (self.extents.free and self.health.stalled)
        )

    @property
    def share(self) -> float:
        """See stripe.Striped."""
        return (self.rate or self.assumed_rate) * self.options.weight

    def set_stalled(self, stalled: bool) -> None:
        """The device does not answer, or answers again."""
        self.health.stall(stalled)
        self.ring.stalled = stalled
        self._changed.tell()

    @property
    def under_way(self) -> int:
        """Extents that the kernel may still read or write."""
        return len(self._pins)

    def snapshot(self) -> SpillPathSnapshot:
        """The path at this moment."""
        chunk = self.file.chunk
        return SpillPathSnapshot(
            path=self.name,
            total=self.extents.total * chunk,
            used=self.extents.owned * chunk,
            written=self.file.bytes_written,
            read=self.file.bytes_read,
            reading=self.file.reading.ns,
            state=self.state.value,
            weight=self.options.weight,
            rate=None if self.rate is None else round(self.rate),
            errors=self.health.errors,
            retired=self.extents.retired * chunk,
            encrypted=self._cipher is not None,
            daily_writes=self.options.daily_writes,
            written_today=self.budget.written_today(time.time()),
        )

    # Storing. What is stored is the caller's from here on.

    async def store(self, arena: Arena, slot: int, *, patient: bool = False) -> Stored:
        """Writes a slot, which must not change meanwhile, to an extent. Raises OSError and NoSpace.

        With `patient` a device that stalls is waited for. After any exception, trio.Cancelled too,
        nothing is stored.
        """
        index = self.extents.take()
        try:
            await self._write(index, arena, slot, patient)
        except BaseException as error:
            if isinstance(error, OSError) and not isinstance(error, Abandoned):
                self._erred(error, index, write=True)
            self._release(index)
            raise
        self.health.succeeded(write=True)
        self.budget.wrote(time.time())
        stored = Stored(self, index)
        self.owners[index] = stored
        if self.empties:  # since the write began: now it can be moved
            self._changed.tell()
        return stored

    async def _write(self, index: int, arena: Arena, slot: int, patient: bool) -> None:
        if self._cipher is None:
            with slot_memory(arena, slot) as memory:
                digest = Digest(memory)
                await self._send(index, arena, slot, patient, digest.take_all)
            self._checksums[index] = digest.value
            return
        async with self._ciphering.slot() as place:
            with slot_memory(arena, slot) as plain, slot_memory(*place) as secret:
                # Of the plain bytes: so a wrong key or tweak is found out as well.
                digest = Digest(plain)
                await digest.take_all()
                self._checksums[index] = digest.value
                await trio.to_thread.run_sync(
                    self._cipher.encrypt, index, self.extents.generation(index), plain, secret
                )
            await self._send(index, *place, patient, None)

    async def _send(
        self,
        index: int,
        arena: Arena,
        slot: int,
        patient: bool,
        meanwhile: Callable[[], Awaitable[None]] | None,
    ) -> None:
        late = self._pinned(index)
        try:
            await self.file.write(index, arena, slot, meanwhile=meanwhile, late=late, patient=patient)
        finally:
            self._transferred(late)

    # Loading

    async def load(self, index: int, arena: Arena, slot: int) -> None:
        """Reads what an extent holds into a slot and proves it right; the extent keeps it.

        Raises OSError: EIO also when the device returned other bytes than were written. The extent
        is then retired, unless it is not to blame. After any exception the slot's content is undefined.
        """
        expected = self._checksums.get(index)
        if expected is None:
            raise ExtentError(f"nothing is stored in extent {index} of {self.name}")
        generation = self.extents.generation(index)
        self._pin(index)  # for all tries, and against its being moved meanwhile
        try:
            for tries_left in reversed(range(_READ_TRIES)):
                try:
                    await self._read(index, generation, expected, arena, slot)
                    self.health.succeeded(write=False)
                    return
                except OSError as error:
                    if tries_left:
                        _log.warning("%s: reading extent %d again: %s", self.name, index, error.strerror)
                        continue
                    self._erred(error, index, write=False)
                    raise OSError(error.errno or errno.EIO, error.strerror, self.name) from error
        finally:
            self._unpin(index)

    async def _read(self, index: int, generation: int, expected: int, arena: Arena, slot: int) -> None:
        with slot_memory(arena, slot) as memory:
            digest = Digest(memory)
            arrived = digest.take if self._cipher is None else None
            late = self._pinned(index)
            try:
                await self.file.read(index, arena, slot, arrived=arrived, late=late)
            finally:
                self._transferred(late)
            if self._cipher is not None:
                await trio.to_thread.run_sync(self._cipher.decrypt, index, generation, memory, memory)
            await digest.take_all()
            if digest.value != expected:
                raise OSError(errno.EIO, "the device returned other bytes than were written", self.name)

    # Handing down

    def place(self, index: int) -> Place | None:
        """What a daemon after this one has to know of an extent; None if that would not help it."""
        checksum = self._checksums.get(index)
        if self._cipher is not None or checksum is None:
            return None
        return Place(self.file.id, index, self.extents.generation(index), checksum)

    def inherit(self, places: Sequence[Place]) -> list[Stored]:
        """What the daemon before this one left in these extents, stored from now on; in their order.

        Before anything else is stored. What the file has no extent for is lost.
        """
        here: dict[int, Stored] = {}
        inherited: list[Stored] = []
        generations: dict[int, int] = {}
        for place in places:
            fits = 0 <= place.index < self.file.extents and place.generation % 2 and place.index not in here
            stored = Stored(self, place.index) if fits else lost()
            if fits:
                here[place.index] = stored
                generations[place.index] = place.generation
            inherited.append(stored)
        self.extents.inherit(generations)
        for place, stored in zip(places, inherited, strict=True):
            if stored.path is self:
                self._checksums[place.index] = place.checksum
                self.owners[place.index] = stored
        return inherited

    def release(self, stored: Stored) -> None:
        """The extent is no longer wanted by whoever had it stored."""
        index = stored.index
        assert self.owners[index] is stored
        self.owners[index] = None
        stored.path, stored.index = None, -1
        self._release(index)

    def lose(self, stored: Stored) -> None:
        """Gives the extent up, which cannot be read any more; its owner will be told."""
        self.release(stored)
        stored.index = _LOST
        if stored.moved is not None:
            stored.moved(stored)

    # Extents

    # Two functions and no context manager: made of a generator, it took a tenth of a request's time here.

    def _pinned(self, index: int) -> Callable[[], None]:
        """Pins the extent for a transfer; the `late` that it is to be given, see Ring.read()."""
        self._pin(index)
        return partial(self._unpin, index)

    def _transferred(self, late: Callable[[], None]) -> None:
        """The transfer has ended, though the kernel may still have it."""
        if not self.ring.owes(late):
            late()

    def _pin(self, index: int) -> None:
        self._pins[index] = self._pins.get(index, 0) + 1

    def _unpin(self, index: int) -> None:
        self._pins[index] -= 1
        if not self._pins[index]:
            del self._pins[index]
            if index in self._leaving:
                self._leaving.discard(index)
                self._free(index)

    def _release(self, index: int) -> None:
        if index in self._pins:
            self._leaving.add(index)
        else:
            self._free(index)

    def _free(self, index: int) -> None:
        del self._checksums[index]
        self.extents.give_back(index)
        self._changed.tell()

    def _erred(self, error: OSError, index: int, *, write: bool) -> None:
        what = "writing" if write else "reading"
        _log.warning("%s: %s failed: %s", self.name, what, error.strerror)
        if is_ours(error):
            return
        before = self.state
        self.health.erred(error.errno, write=write)
        self.extents.retire(index)
        if self.state is not before:
            _log.error("%s: %s; it takes no more chunks, and those it holds are moved", self.name, self.state)
            self._changed.tell()
            self.emptying.tell()
