# SPDX-License-Identifier: GPL-2.0-or-later
"""T3 as a whole: chunks in extents that are striped over any number of spill paths.

Invariants, across every await:

- An extent is free, or owned by exactly one caller, or retired. Nobody but its owner can have it
  read, written or given back, and it cannot be given back during a transfer.
- A read returns what was last written through the same Extent, or raises. So an extent has a
  checksum only between the end of a write that succeeded and the start of the next write.
- A retired extent is never taken again.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import trio

from tierd.model import SpillPathSnapshot

from .checksum import Checksums, digest_in_thread_if_large, digest_while
from .errors import ExtentError, MemlockError, NoSpace, SpillWriteError
from .extents import Extent, ExtentAllocator
from .ring import DEFAULT_ENTRIES, DEFAULT_PIECE, Ring
from .slots import Arena, slot_memory
from .spillfile import SpillFile

__all__ = ["SpillSet", "open_spill_files", "open_spill_set"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Path:
    file: SpillFile
    ring: Ring
    extents: ExtentAllocator
    checksums: Checksums
    credit: int = 0  # for striping; see SpillSet._choose
    transfers: dict[int, int] = field(default_factory=dict)  # by extent: the readers, or -1 for a writer

    def begin(self, extent: Extent, *, write: bool) -> None:
        readers = self.transfers.get(extent.index, 0)
        if readers < 0 or (write and readers):
            raise trio.BusyResourceError(f"{extent} is being transferred")
        self.transfers[extent.index] = -1 if write else readers + 1

    def end(self, extent: Extent) -> None:
        if self.transfers[extent.index] > 1:
            self.transfers[extent.index] -= 1
        else:
            del self.transfers[extent.index]


def open_spill_files(
    paths: Iterable[tuple[str, int | None]], chunk: int, *, ephemeral: bool = False
) -> list[SpillFile]:
    """Opens every path with its size, or none: see SpillFile.open(). Raises SpillPathError."""
    with ExitStack() as undo:
        files = [undo.enter_context(SpillFile.open(p, size, chunk, ephemeral=ephemeral)) for p, size in paths]
        undo.pop_all()
    return files


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
    ) -> None:
        self.chunk = chunk  #: bytes of an extent
        self._paths: list[_Path] = []
        self._arenas: dict[int, Arena] = {}
        self._resources = ExitStack()
        with ExitStack() as undo:  # leaves in reverse order: detach a file, close its ring, close it
            kept = [undo.enter_context(file) for file in files]
            for number, file in enumerate(kept):
                ring = undo.enter_context(Ring(entries=entries, piece=piece))
                file.attach(ring)
                undo.callback(file.detach)
                extents = ExtentAllocator(number, file.extents)
                self._paths.append(_Path(file, ring, extents, Checksums(file.extents)))
            self._resources = undo.pop_all()

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
        if any(path.transfers for path in self._paths):
            raise trio.BusyResourceError("a transfer is under way")
        self._resources.close()
        self._paths.clear()
        self._arenas.clear()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drives the rings until it is cancelled; see Ring.run(). Transfers need it."""
        async with trio.open_nursery() as nursery:
            for path in self._paths:
                await nursery.start(path.ring.run)
            task_status.started()
            await trio.sleep_forever()

    # How much there is

    @property
    def total(self) -> int:
        """Chunks that T3 holds, what retired extents held not counted."""
        return sum(path.extents.total for path in self._paths)

    @property
    def free(self) -> int:
        """Chunks for which there is room now."""
        return sum(path.extents.free for path in self._paths)

    def snapshot(self) -> tuple[SpillPathSnapshot, ...]:
        """The spill paths at this moment."""
        return tuple(
            SpillPathSnapshot(
                path=path.file.path,
                total=path.extents.total * self.chunk,
                used=path.extents.owned * self.chunk,
                written=path.file.bytes_written,
                read=path.file.bytes_read,
            )
            for path in self._paths
        )

    # Arenas

    def add_arena(self, arena: Arena) -> None:
        """Registers the arena's memory with every ring, before the first transfer with it.

        Where the limit on locked memory forbids it, transfers work all the same, at the cost of
        pinning the pages each time, and a warning says what to do. Raises OSError or NoSpace.
        """
        if arena.id in self._arenas:
            raise ValueError(f"arena {arena.id} was added before")
        with ExitStack() as undo:
            for path in self._paths:
                try:
                    path.file.add_arena(arena)
                except MemlockError as error:
                    _log.warning("%s; until then spilling costs more processor time", error.strerror)
                    path.file.add_arena(arena, fixed=False)
                undo.callback(path.file.remove_arena, arena)
            undo.pop_all()
        self._arenas[arena.id] = arena

    def remove_arena(self, arena: Arena) -> None:
        """Lets go of the arena's memory. Raises trio.BusyResourceError during a transfer with it."""
        for path in self._paths:
            path.file.remove_arena(arena)
        del self._arenas[arena.id]

    # Ownership

    def take(self) -> Extent:
        """A free extent, now the caller's, who gives it back. Raises NoSpace."""
        return self._choose().extents.take()

    def give_back(self, extent: Extent) -> None:
        """The caller no longer wants the extent or what it holds.

        Raises ExtentError when it is not the caller's, trio.BusyResourceError during a transfer.
        """
        path = self._path_of(extent)
        if extent.index in path.transfers:
            raise trio.BusyResourceError(f"{extent} is being transferred")
        del path.checksums[extent.index]
        path.extents.give_back(extent)

    def _choose(self) -> _Path:
        """The path whose turn it is: round robin, weighted by the free extents of each.

        Each turn a path gains as much credit as it has free extents, and the one that is chosen
        pays for all. That mixes the paths as finely as their weights allow.
        """
        paths = [path for path in self._paths if path.extents.free]
        if not paths:
            raise NoSpace("T3 is full" if self._paths else "there is no spill path")
        if len(paths) == 1:
            return paths[0]
        for path in paths:
            path.credit += path.extents.free
        chosen = max(paths, key=lambda path: path.credit)
        chosen.credit -= sum(path.extents.free for path in paths)
        return chosen

    def _path_of(self, extent: Extent) -> _Path:
        if not 0 <= extent.path < len(self._paths):
            raise ExtentError(f"{extent} is on no spill path of this set")
        path = self._paths[extent.path]
        path.extents.check(extent)
        return path

    # Transfers

    async def store(self, extent: Extent, arena: Arena, slot: int) -> None:
        """Writes a slot, which must not change meanwhile, to an extent of the caller's.

        Raises SpillWriteError when the device fails: the extent is retired, and has to be given
        back all the same. After any exception, trio.Cancelled too, the extent holds nothing.
        """
        path = self._path_of(extent)
        path.begin(extent, write=True)
        try:
            del path.checksums[extent.index]
            with slot_memory(arena, slot) as memory:
                checksum = await digest_while(
                    memory, lambda meanwhile: path.file.write(extent.index, arena, slot, meanwhile=meanwhile)
                )
            path.checksums[extent.index] = checksum
        except OSError as error:
            path.extents.retire(extent)
            raise SpillWriteError(error.errno, error.strerror, path.file.path) from error
        finally:
            path.end(extent)

    async def load(self, extent: Extent, arena: Arena, slot: int) -> None:
        """Reads what the extent holds into a slot and proves it right; the extent keeps it.

        Raises OSError: EIO also when nothing is stored there, or when the device returned other
        bytes than were written, in which case the extent is retired, and has to be given back all
        the same. After any exception the slot's content is undefined.
        """
        path = self._path_of(extent)
        expected = path.checksums.get(extent.index)
        if expected is None:
            raise OSError(errno.EIO, "nothing is stored in the extent", path.file.path)
        path.begin(extent, write=False)
        try:
            await path.file.read(extent.index, arena, slot)
            with slot_memory(arena, slot) as memory:
                found = await digest_in_thread_if_large(memory)
            if found != expected:
                path.extents.retire(extent)
                raise OSError(errno.EIO, "the device returned other bytes than were written", path.file.path)
        finally:
            path.end(extent)


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
