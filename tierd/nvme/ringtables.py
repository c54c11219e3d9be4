# SPDX-License-Identifier: GPL-2.0-or-later
"""An io_uring ring with the files and the memory that are registered with it, before anything drives it."""

from __future__ import annotations

import errno
import mmap
import os
import select
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from tierd.model import Poll

from ._uring import ffi, lib
from .ringsetup import buffer_error, cannot_poll, new_ring
from .table import Table

if TYPE_CHECKING:
    from ._uring import CData

__all__ = ["RingBuffer", "RingFile", "RingTables", "write_within"]

_GIB = 1 << 30


class RingBuffer:
    """Memory that a ring transfers from and to. Ring.add_buffer() makes it."""

    __slots__ = ("_memory", "busy", "first", "fixed", "length", "segments")

    def __init__(self, first: int, segments: int, length: int, fixed: bool, memory: CData) -> None:
        self.first = first  #: its first entry in the ring's table; -1 once removed
        self.segments = segments
        self.length = length  #: bytes
        self.fixed = fixed  #: whether its pages are pinned once and for all
        self.busy = 0  #: requests under way
        self._memory = memory

    def release(self) -> None:
        """Lets go of the memory: until then the mapping behind it cannot be closed."""
        self.first = -1
        ffi.release(self._memory)


class RingFile:
    """A file that a ring transfers from and to. Ring.add_file() makes it."""

    __slots__ = ("busy", "index")

    def __init__(self, index: int) -> None:
        self.index = index  #: its entry in the ring's table; -1 once removed
        self.busy = 0  #: requests under way


class RingTables:
    """One io_uring instance and its tables; Ring is what transfers.

    Raises RingError where io_uring cannot be used.
    """

    def __init__(self, entries: int, piece: int, window: int, buffers: int, files: int, poll: Poll) -> None:
        self._poll = poll
        self._ring, self._setup_flags = new_ring(entries, piece, window, buffers, files, poll)
        self._open = True  # requests are taken
        self._eventfd = lib.gb_ring_eventfd(self._ring)
        self._ended = ffi.new("uint32_t[]", entries)
        self._results = ffi.new("int32_t[]", entries)
        self._buffer_table = Table(buffers)
        self._file_table = Table(files)
        self._buffers: set[RingBuffer] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the ring back to the kernel; closing twice is allowed."""
        if self._eventfd == -1:
            return
        self._open = False
        self._eventfd = -1
        lib.gb_ring_free(self._ring)
        for buffer in self._buffers:
            buffer.release()
        self._buffers.clear()

    def add_file(self, fd: int) -> RingFile:
        """Registers an open file. The ring holds the file, not the descriptor, until it is removed.

        Raises NoSpace when the table is full and OSError when the kernel refuses.
        """
        self._check_open()
        index = self._file_table.take(1)
        error = lib.gb_ring_set_file(self._ring, index, fd)
        if error:
            self._file_table.give_back(index, 1)
            raise OSError(-error, f"io_uring cannot register file descriptor {fd}: {os.strerror(-error)}")
        return RingFile(index)

    def check_polling(self, file: RingFile) -> None:
        """Reads the file's first block, before run(), where the ring polls for completions.

        Raises RingError where it cannot be polled, which the kernel says only when it is tried, and
        OSError where it cannot be read.
        """
        if self._poll != "io":
            return
        with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as memory:
            buffer = self.add_buffer(memory, fixed=False)
            try:
                lib.gb_ring_start(self._ring, 0, file.index, buffer.first, 0, mmap.PAGESIZE, 0, 0)
                while not lib.gb_ring_reap(self._ring, self._ended, self._results):
                    pass
                error = -self._results[0]
            finally:
                self.remove_buffer(buffer)
        if error == errno.EOPNOTSUPP:
            raise cannot_poll()
        if error:
            raise OSError(error, os.strerror(error))

    def remove_file(self, file: RingFile) -> None:
        """Lets go of a file. Raises trio.BusyResourceError while a request uses it.

        Also when one was abandoned and, with poll="sq", the kernel's thread has not even looked at it
        for a second.
        """
        self._check_idle(file.busy, file.index)
        self._check_settled(lib.gb_ring_set_file(self._ring, file.index, -1))
        self._file_table.give_back(file.index, 1)
        file.index = -1

    def add_buffer(self, memory: memoryview, *, fixed: bool = True) -> RingBuffer:
        """Registers writable memory, of any length; its pages are pinned here, once.

        With `fixed` false nothing is pinned now, and the kernel pins for each transfer. Takes 8 ms a
        GiB, but up to 0.6 s where the pages do not exist yet: populate large memory in a thread.

        Raises MemlockError when RLIMIT_MEMLOCK forbids it, NoSpace when the table is full, and
        OSError when the kernel refuses otherwise.
        """
        self._check_open()
        segments = -(-memory.nbytes // _GIB)
        first = self._buffer_table.take(segments)
        address = ffi.from_buffer("char[]", memory, require_writable=True)
        error = lib.gb_ring_set_buffer(self._ring, first, address, memory.nbytes, fixed)
        if error:
            ffi.release(address)
            self._buffer_table.give_back(first, segments)
            raise buffer_error(-error, memory.nbytes)
        buffer = RingBuffer(first, segments, memory.nbytes, fixed, address)
        self._buffers.add(buffer)
        return buffer

    def remove_buffer(self, buffer: RingBuffer) -> None:
        """Unpins a buffer. Raises trio.BusyResourceError as remove_file() does."""
        self._check_idle(buffer.busy, buffer.first)
        self._check_settled(lib.gb_ring_clear_buffer(self._ring, buffer.first, buffer.length))
        self._buffer_table.give_back(buffer.first, buffer.segments)
        self._buffers.discard(buffer)
        buffer.release()

    def _check_settled(self, error: int) -> None:
        if error == -errno.EBUSY:
            raise trio.BusyResourceError("the kernel's thread has not taken what was abandoned yet")

    def _check_open(self) -> None:
        if not self._open:
            raise trio.ClosedResourceError("the ring was closed")

    def _check_idle(self, busy: int, entry: int) -> None:
        if self._eventfd == -1:
            raise trio.ClosedResourceError("the ring was closed")
        if entry < 0:
            raise ValueError("it was removed from the ring before")
        if busy:
            raise trio.BusyResourceError(f"{busy} requests are using it")


def write_within(seconds: float, fd: int, memory: memoryview, file_offset: int) -> None:
    """Writes memory to a file for who has no pump and cannot wait for a device that stalls.

    pwrite() would: nothing interrupts it then, and nothing kills the process. Blocks the thread for
    `seconds` at most. Raises OSError: TimeoutError when they are over. The memory may be reused even
    then, but the file may yet be written.
    """
    until = time.monotonic() + seconds
    size = memory.nbytes
    with RingTables(entries=1, piece=size, window=size, buffers=1, files=1, poll="none") as ring:
        file, buffer = ring.add_file(fd), ring.add_buffer(memory)
        number = lib.gb_ring_start(
            ring._ring, lib.GB_WRITE, file.index, buffer.first, 0, buffer.length, file_offset, 0
        )
        ready = select.poll()
        ready.register(ring._eventfd, select.POLLIN)
        while not lib.gb_ring_reap(ring._ring, ring._ended, ring._results):
            left = until - time.monotonic()
            if left <= 0:
                lib.gb_ring_abandon(ring._ring, number)
                raise TimeoutError(errno.ETIMEDOUT, "the device does not answer")
            ready.poll(left * 1000)
        error = -ring._results[0]
        # Now, for the kernel takes rings apart in the background, and the file stays busy till then.
        ring.remove_buffer(buffer)
        ring.remove_file(file)
    if error:
        raise OSError(error, os.strerror(error))
