# SPDX-License-Identifier: GPL-2.0-or-later
"""One spill path in use: extents in a file or on a block device, moved through a ring."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from tierd.model import SpillOptions

from .busy import Busy
from .errors import RingError
from .ring import Ring
from .ringtables import RingBuffer, RingFile, write_within
from .slots import Arena, slot_offset
from .spillpath import DATA_OFFSET, OpenPath, is_same_file, open_spill_path
from .superblock import BLOCK, State

__all__ = ["SpillFile", "open_spill_files"]

_log = logging.getLogger(__name__)

_DEFAULTS = SpillOptions()


class SpillFile:
    """A spill path that is open. It is divided into extents of `chunk` bytes, numbered from 0.

    Made by SpillFile.open(), it is locked and has its blocks, and can be closed again: that is all
    that checking a configuration takes. Transfers need a ring: see attach().
    """

    def __init__(self, opened: OpenPath, chunk: int, options: SpillOptions) -> None:
        self.path = opened.path
        self.options = options
        self.chunk = chunk  #: bytes of an extent
        self.extents = (opened.size - DATA_OFFSET) // chunk
        self.size = opened.size  #: bytes in all
        self.adopted = opened.adopted  #: a daemon before this one died with it open
        self.id = opened.superblock.id  #: what it is known by, whatever its path
        self.generation = opened.superblock.generation  #: counts the openings
        self.inherits = False  #: it may hold what the daemon before this one stored
        self.stays = False  #: closing leaves it as a daemon that died would: others go on with its content
        self.bytes_written = 0
        self.bytes_read = 0
        self.reading = Busy()  #: whether any read is under way
        self._fd = opened.fd
        self._superblock = opened.superblock
        self._named = opened.named
        self._ring: Ring | None = None
        self._file: RingFile | None = None
        self._buffers: dict[int, RingBuffer] = {}

    @classmethod
    def open(
        cls,
        path: str,
        size: int | None,
        chunk: int,
        *,
        ephemeral: bool = False,
        force: bool = False,
        options: SpillOptions = _DEFAULTS,
    ) -> Self:
        """Opens or creates a spill path; see open_spill_path(). Raises SpillPathError."""
        opened = open_spill_path(path, size, chunk, ephemeral=ephemeral, force=force)
        if opened.adopted:
            _log.info("spill path %s was not closed in order", path)
        return cls(opened, chunk, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The open file; -1 once closed."""
        return self._fd

    @property
    def made(self) -> bool:
        """Whether a daemon made it, so that one also removes it."""
        return self._superblock.created and self._named

    def close(self) -> None:
        """Lets go of the path; a file that a daemon created is removed unless it `stays`.

        Closing twice is allowed. Takes the path's deadline at most where its device stalls; the next
        daemon adopts it then.
        Raises trio.BusyResourceError while a transfer is under way.
        """
        if self._fd == -1:
            return
        self.detach()
        fd, self._fd = self._fd, -1
        try:
            if self.stays:
                pass
            elif self._superblock.created:
                if self.made and is_same_file(self.path, fd):
                    os.unlink(self.path)
            else:
                self._write_last(fd)
        except OSError as error:
            # Nothing is lost: the next daemon adopts the path.
            _log.warning("spill path %s was not closed in order: %s", self.path, error)
        finally:
            # Not left to close(): the kernel may let go of the ring's reference to the file later.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _write_last(self, fd: int) -> None:
        with mmap.mmap(-1, BLOCK) as page, memoryview(page) as block:
            block[:] = replace(self._superblock, state=State.CLOSED).pack()
            try:
                write_within(self.options.deadline, fd, block, 0)
            except RingError:  # nothing was ever transferred here
                os.pwritev(fd, [block], 0)
        os.fdatasync(fd)

    def attach(self, ring: Ring) -> None:
        """Makes transfers go through this ring, whose pump runs. Raises OSError."""
        file = ring.add_file(self._fd)
        ring.check_polling(file)
        self._file = file
        self._ring = ring

    def detach(self) -> None:
        """Lets go of the ring and of all arenas. Raises trio.BusyResourceError during a transfer."""
        if self._ring is None or self._file is None:
            return
        for buffer in self._buffers.values():
            self._ring.remove_buffer(buffer)
        self._buffers.clear()
        self._ring.remove_file(self._file)
        self._ring = self._file = None

    def add_arena(self, arena: Arena, *, fixed: bool = True) -> None:
        """Registers the arena's memory; see Ring.add_buffer(), whose exceptions it raises."""
        if arena.chunk != self.chunk:
            raise ValueError(
                f"arena {arena.id} has slots of {arena.chunk} bytes, {self.path} of {self.chunk}"
            )
        if arena.id in self._buffers:
            raise ValueError(f"arena {arena.id} was added before")
        self._buffers[arena.id] = self._attached()[0].add_buffer(arena.memory, fixed=fixed)

    def remove_arena(self, arena: Arena) -> None:
        """Lets go of the arena's memory. Raises trio.BusyResourceError while a transfer uses it."""
        ring, _, buffer = self._registered(arena)
        ring.remove_buffer(buffer)
        del self._buffers[arena.id]

    async def write(
        self,
        index: int,
        arena: Arena,
        slot: int,
        *,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
        late: Callable[[], None] | None = None,
        patient: bool = False,
    ) -> None:
        """Writes a slot to extent `index`. Raises OSError; see Ring.write()."""
        ring, file, buffer = self._prepare(index, arena)
        offset, position = slot_offset(arena, slot), self._position(index)
        await ring.write(
            file, buffer, offset, self.chunk, position, meanwhile=meanwhile, late=late, patient=patient
        )
        self.bytes_written += self.chunk

    async def read(
        self,
        index: int,
        arena: Arena,
        slot: int,
        *,
        arrived: Callable[[int], None] | None = None,
        late: Callable[[], None] | None = None,
    ) -> None:
        """Reads extent `index` into a slot. Raises OSError; see Ring.read()."""
        ring, file, buffer = self._prepare(index, arena)
        offset, position = slot_offset(arena, slot), self._position(index)
        with self.reading:
            await ring.read(file, buffer, offset, self.chunk, position, arrived=arrived, late=late)
        self.bytes_read += self.chunk

    def _position(self, index: int) -> int:
        return DATA_OFFSET + index * self.chunk

    def _prepare(self, index: int, arena: Arena) -> tuple[Ring, RingFile, RingBuffer]:
        if not 0 <= index < self.extents:
            raise ValueError(f"{self.path} has no extent {index}: it has {self.extents}")
        return self._registered(arena)

    def _registered(self, arena: Arena) -> tuple[Ring, RingFile, RingBuffer]:
        try:
            return *self._attached(), self._buffers[arena.id]
        except KeyError:
            raise ValueError(f"arena {arena.id} was not added") from None

    def _attached(self) -> tuple[Ring, RingFile]:
        if self._ring is None or self._file is None:
            raise RuntimeError(f"{self.path} has no ring: attach() it first")
        return self._ring, self._file


def open_spill_files(
    paths: Iterable[tuple[str, int | None]], chunk: int, *, ephemeral: bool = False
) -> list[SpillFile]:
    """Opens every path with its size, or none: see SpillFile.open(). Raises SpillPathError."""
    with ExitStack() as undo:
        files = [undo.enter_context(SpillFile.open(p, size, chunk, ephemeral=ephemeral)) for p, size in paths]
        undo.pop_all()
    return files
