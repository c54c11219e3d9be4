# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 as a whole: chunks in extents that are striped over any number of spill paths.

Paths come and go while it runs. Whoever stored a chunk has a Stored, which says where the chunk is
now: a path that fails, or is to be removed, has its chunks moved elsewhere behind it (drain.py).
"""

from __future__ import annotations

import errno
import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

import trio

from tierd.model import SpillPathSnapshot

from .crypt import CipherMissing
from .drain import drain
from .errors import ExtentError, MemlockError, NoSpace, SpillPathError, SpillWriteError
from .fill import fill, repeated_word
from .health import PathState
from .notice import Notice
from .path import Place, SpillPath, Stored, lost
from .probe import measure_rate
from .ring import DEFAULT_ENTRIES, DEFAULT_PIECE, Abandoned, Ring
from .slots import Arena, slot_memory
from .spillfile import SpillFile
from .stripe import next_path
from .transit import Transit
from .watch import watch

__all__ = ["Place", "SpillSet", "Stored", "open_spill_set"]

_log = logging.getLogger(__name__)

_WRITE_TRIES = 3
"""Extents that a chunk is written to before it is held to be impossible."""

_PATIENT_AFTER = 2
"""Devices that stalled before a chunk's write waits for the next."""


class SpillSet:
    """The extents of all spill paths, for chunks of `chunk` bytes; with no path it is always full.

    The files are the set's from the call on, even where it raises: close() closes them. Each gets a
    ring of its own with `entries` pieces of `piece` bytes; see Ring, whose exceptions are raised.
    """

    def __init__(
        self,
        files: Iterable[SpillFile] = (),
        *,
        chunk: int,
        entries: int = DEFAULT_ENTRIES,
        piece: int = DEFAULT_PIECE,
        hold: int = -1,
    ) -> None:
        """`hold` is an open file that each ring keeps open until the kernel has ended its last transfer."""
        self.chunk = chunk  #: bytes of an extent
        self.same_filled = 0  #: chunks that are stored as a word
        self._entries = entries
        self._piece = piece
        self._hold = hold
        self._paths: list[SpillPath] = []
        self._arenas: dict[int, Arena] = {}
        self._nursery: trio.Nursery | None = None  # while it runs
        self._changed = Notice()  # there may be room, or something to be moved
        self._measuring = trio.Lock()  # two at a time would measure each other
        self._transits = itertools.count(-1, -1)
        self._ciphering = self._transit()
        with ExitStack() as undo:
            undo.callback(self._close)
            kept = [undo.enter_context(file) for file in files]  # closing twice is allowed
            for file in kept:
                self._open(file)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every ring and file; what was stored is gone. Closing twice is allowed.

        Raises trio.BusyResourceError during a transfer: run() ends only when there is none.
        """
        if any(path.ring.oldest is not None for path in self._paths):
            raise trio.BusyResourceError("a transfer is under way")
        self._close()

    def _close(self) -> None:
        while self._paths:
            path = self._paths[-1]
            self._withdraw(path)
            self._shut(path)
        self._arenas.clear()

    # Paths

    def _open(self, file: SpillFile) -> SpillPath:
        """Makes the file a path of the set. It is closed again where this raises."""
        with ExitStack() as undo:
            undo.callback(file.close)
            ring = Ring(entries=self._entries, piece=self._piece, poll=file.options.poll)
            undo.callback(ring.close)
            if self._hold >= 0:
                ring.add_file(self._hold)
            file.attach(ring)
            undo.callback(file.detach)
            for arena in self._arenas.values():
                self._add_to(file, arena)
            try:
                path = SpillPath(file, ring, self._ciphering, self._changed)
            except CipherMissing as error:
                wrong, _, remedy = str(error).partition("; ")
                raise SpillPathError(file.path, wrong, remedy) from error
            undo.callback(path.close)
            self._paths.append(path)
            undo.callback(self._paths.remove, path)
            if file.options.encrypt:
                self._ciphering.open()
            undo.pop_all()
        return path

    def _withdraw(self, path: SpillPath) -> None:
        """Nothing goes to the path any more, nor comes from it."""
        self._paths.remove(path)
        path.file.detach()
        if path.options.encrypt:
            self._ciphering.close()

    def _shut(self, path: SpillPath) -> None:
        path.close()
        path.ring.close()
        path.file.close()

    def _transit(self) -> Transit:
        """Slots for one purpose: who waits with them for a device that stalls keeps nobody else waiting."""
        return Transit(next(self._transits), self.chunk, register=self._register, unregister=self._unregister)

    @property
    def files(self) -> list[SpillFile]:
        """The files of all paths."""
        return [path.file for path in self._paths]

    @property
    def draining(self) -> frozenset[uuid.UUID]:
        """The paths that are to be emptied."""
        return frozenset(path.file.id for path in self._paths if path.health.draining)

    def find(self, name: str) -> SpillPath | None:
        """The path of that name."""
        return next((path for path in self._paths if path.name == name), None)

    async def add(self, file: SpillFile) -> SpillPath:
        """Takes a file into use, which is the set's from here on.

        Raises OSError and trio.Cancelled, with it closed.
        """
        path = self._open(file)
        assert self._nursery is not None
        path.ready = False  # what measuring takes of it is nobody else's room
        try:
            await self._nursery.start(self._drive, path)
        except BaseException:
            self._withdraw(path)
            self._shut(path)
            raise
        try:
            await self._measure()
        finally:
            path.ready = True
            self._changed.tell()
        return path

    def inherit(self, places: Mapping[int, Sequence[Place]]) -> dict[int, list[Stored]]:
        """What the daemon before this one stored, by session; in the order of its places.

        Before anything else is stored. What no path of the set can have is lost.
        """
        by_path: dict[uuid.UUID, list[Place]] = {}
        for place in itertools.chain.from_iterable(places.values()):
            if place.path is not None:
                by_path.setdefault(place.path, []).append(place)
        # One iterator a path: the places of a path come back in the order in which they went in.
        found = {
            path.file.id: iter(path.inherit(by_path[path.file.id]))
            for path in self._paths
            if path.file.id in by_path and path.file.inherits and not path.options.encrypt
        }

        def stored(place: Place) -> Stored:
            if place.path is None:
                self.same_filled += 1
                return Stored(None, place.index)
            return next(found[place.path]) if place.path in found else lost()

        return {session: [stored(place) for place in its] for session, its in places.items()}

    def drain(self, path: SpillPath) -> None:
        """Gives the path no more chunks and begins to move those it holds."""
        path.health.drain(True)
        self._changed.tell()
        path.emptying.tell()

    def drain_again(self, ids: Collection[uuid.UUID]) -> None:
        """Drains those that the daemon before this one was emptying."""
        for path in self._paths:
            if path.file.id in ids:
                self.drain(path)

    def restore(self, path: SpillPath) -> bool:
        """Calls a drain off; False if the path has failed, and is drained all the same."""
        path.health.drain(False)
        self._changed.tell()
        return not path.empties

    async def remove(self, path: SpillPath) -> None:
        """Waits until a path that drains holds nothing, and closes it.

        What cannot be read any more is given up: its owner gets the error all the same. Raises
        ExtentError when the drain is called off meanwhile. Cancelled, it goes on if it has begun to close.
        """
        path.removals += 1
        self._changed.tell()
        try:
            while path.empties and path.extents.owned:
                await self._changed.wait()
        finally:
            path.removals -= 1
        if not path.empties:
            raise ExtentError(f"{path.name} is in use again")
        if not path.leave.is_set():  # or somebody else waited too
            path.leave.set()
            self._withdraw(path)  # at once: its ring is on its way out
        await path.gone.wait()

    # Running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drives the rings until it is cancelled; see Ring.run(). Transfers need it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for path in self._paths:
                    await nursery.start(self._drive, path)
                await self._measure()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _drive(self, path: SpillPath, *, task_status: trio.TaskStatus[None]) -> None:
        watching = trio.CancelScope(shield=True)  # to the end: a ring must not wait for a device that stalls
        try:
            async with trio.open_nursery() as outer:
                outer.start_soon(self._watch, path, watching)
                try:
                    async with trio.open_nursery() as pump:  # ends after those who wait for transfers
                        await pump.start(path.ring.run)
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._drain_when_asked, path)
                            task_status.started()
                            await path.leave.wait()
                            nursery.cancel_scope.cancel()
                        pump.cancel_scope.cancel()
                finally:
                    watching.cancel()
        finally:
            if path.leave.is_set():  # so it is not among ours any more, and nobody else closes it
                path.close()
                path.ring.close()
                with trio.CancelScope(shield=True):
                    # In a thread: the superblock's device may be slow, and so may removing a large file.
                    await trio.to_thread.run_sync(path.file.close)
            path.gone.set()

    async def _watch(self, path: SpillPath, scope: trio.CancelScope) -> None:
        with scope:
            await watch(path, self._others_have_room)

    async def _drain_when_asked(self, path: SpillPath) -> None:
        transit = self._transit()
        room = partial(self._others_have_room, path)
        while True:
            while not (path.empties and path.extents.owned):
                await path.emptying.wait()  # not for changes, which come with every chunk
            await drain(path, transit, self._store, self._changed, room)

    async def _measure(self) -> None:
        """How fast each path is, if there is a choice among them."""
        if len(self._paths) < 2:
            return
        async with self._measuring:
            for path in list(self._paths):
                # One that is well filled is not disturbed; it gets its share as if it were like the others.
                roomy = path.extents.free > path.extents.total // 4
                if path.rate is None and path.state is PathState.ACTIVE and roomy:
                    await measure_rate(path, self._transit())
        known = [path.rate for path in self._paths if path.rate is not None]
        for path in self._paths:
            path.assumed_rate = sum(known) / len(known) if known else 1.0

    # How much there is

    @property
    def total(self) -> int:
        """Chunks that may be promised a place: what failed or is to be removed is not counted."""
        return sum(path.extents.total for path in self._paths if path.counts)

    @property
    def free(self) -> int:
        """Chunks for which there is room now."""
        return sum(path.extents.free for path in self._paths if path.takes)

    @property
    def budget_spent(self) -> bool:
        """Whether every path that takes chunks has been written as much today as it should be."""
        if not any(path.options.daily_writes for path in self._paths):
            return False
        now = time.time()
        taking = [path for path in self._paths if path.takes]
        return bool(taking) and all(path.budget.spent(now) for path in taking)

    def snapshot(self) -> tuple[SpillPathSnapshot, ...]:
        """The spill paths at this moment."""
        return tuple(path.snapshot() for path in self._paths)

    def _others_have_room(self, path: SpillPath) -> bool:
        return any(other.takes for other in self._paths if other is not path)

    # Arenas

    def add_arena(self, arena: Arena) -> None:
        """Registers the arena's memory with every ring, before the first transfer with it.

        Where the limit on locked memory forbids it, transfers work all the same, at the cost of
        pinning the pages each time, and a warning says what to do. Raises OSError or NoSpace.
        """
        if arena.id in self._arenas:
            raise ValueError(f"arena {arena.id} was added before")
        self._register(arena)

    def remove_arena(self, arena: Arena) -> None:
        """Lets go of the arena's memory. Raises trio.BusyResourceError during a transfer with it."""
        if arena.id not in self._arenas:
            raise ValueError(f"arena {arena.id} was not added")
        self._unregister(arena)

    def _register(self, arena: Arena) -> None:
        with ExitStack() as undo:
            for path in self._paths:
                self._add_to(path.file, arena)
                undo.callback(path.file.remove_arena, arena)
            undo.pop_all()
        self._arenas[arena.id] = arena

    def _unregister(self, arena: Arena) -> None:
        for path in self._paths:
            path.file.remove_arena(arena)
        del self._arenas[arena.id]

    @staticmethod
    def _add_to(file: SpillFile, arena: Arena) -> None:
        try:
            file.add_arena(arena)
        except MemlockError as error:
            _log.warning("%s; until then spilling costs more processor time", error.strerror)
            file.add_arena(arena, fixed=False)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            file.add_arena(arena, fixed=False)  # the module's memory, asked for all the same

    # Transfers

    async def store(self, arena: Arena, slot: int) -> Stored:
        """Writes a slot, which must not change meanwhile, to wherever there is room.

        A path that fails is passed over. Raises NoSpace, and SpillWriteError when several fail;
        after any exception, trio.Cancelled too, nothing is stored.
        """
        with slot_memory(arena, slot) as memory:
            word = repeated_word(memory)
        if word is not None:
            await trio.lowlevel.checkpoint()
            self.same_filled += 1
            stored = Stored(None, word)
            stored.secret = word != 0 and any(path.options.encrypt for path in self._paths)
            return stored
        return await self._store(arena, slot)

    async def _store(self, arena: Arena, slot: int, *, avoid: SpillPath | None = None) -> Stored:
        tried = {avoid}
        tries_left, abandoned = _WRITE_TRIES, 0
        while True:
            path = await self._next_path(tried, avoid)
            try:
                # In the end a slow device is waited for: all may be slower than their deadlines.
                return await path.store(arena, slot, patient=abandoned >= _PATIENT_AFTER)
            except Abandoned:  # it stalls, and gets nothing more until it does not
                abandoned += 1
                tried.add(path)
            except OSError as error:
                tries_left -= 1
                if not tries_left:
                    raise SpillWriteError(error.errno, error.strerror, path.name) from error
                tried.add(path)

    async def _next_path(self, tried: set[SpillPath | None], avoid: SpillPath | None) -> SpillPath:
        """The path to write to next; waits for those that will have room. Raises NoSpace.

        A move, which has a path to `avoid`, does not wait: it would keep its slot meanwhile.
        """
        while True:
            taking = [path for path in self._paths if path.takes and path is not avoid]
            if len(taking) > 1:
                now = time.time()
                # In this order: one that has not just failed, and one that may still be written today.
                taking = [path for path in taking if path not in tried] or taking
                taking = [path for path in taking if not path.budget.spent(now)] or taking
            if taking:
                return next_path(taking)
            if avoid is not None or not any(path.room_to_come for path in self._paths):
                raise NoSpace("T3 is full" if self._paths else "there is no spill path")
            await self._changed.wait()

    async def load(self, stored: Stored, arena: Arena, slot: int) -> None:
        """Brings what is stored into a slot and proves it right; it stays stored.

        Raises OSError when it cannot be had any more, and ExtentError when it was given back. After
        any exception the slot's content is undefined.
        """
        while (path := stored.path) is not None:
            try:
                await path.load(stored.index, arena, slot)
                return
            except OSError:
                if stored.path is path:
                    raise  # it was not moved away meanwhile
        if stored.lost:
            raise OSError(errno.EIO, "it was lost with its spill path")
        if stored.index < 0:
            raise ExtentError("it was given back")
        with slot_memory(arena, slot) as memory:
            fill(memory, stored.index)
        await trio.lowlevel.checkpoint()

    def give_back(self, stored: Stored) -> None:
        """What is stored is no longer wanted. Raises ExtentError when that was said before."""
        if stored.path is not None:
            stored.path.release(stored)
            return
        if stored.index < 0 and not stored.lost:
            raise ExtentError("it was given back before")
        if not stored.lost:
            self.same_filled -= 1
        stored.index = -1


@asynccontextmanager
async def open_spill_set(
    files: Iterable[SpillFile] = (), *, chunk: int, entries: int = DEFAULT_ENTRIES, piece: int = DEFAULT_PIECE
) -> AsyncIterator[SpillSet]:
    """A SpillSet that runs; for those who have no nursery to start SpillSet.run() in."""
    with SpillSet(files, chunk=chunk, entries=entries, piece=piece) as spill:
        async with trio.open_nursery() as nursery:
            await nursery.start(spill.run)
            yield spill
            nursery.cancel_scope.cancel()
