# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a spill path can be read: by fio, or where there is none by threads that pread().

A file is read that lies where the spill file will lie; of a block device, the device itself. Blocks are
of a chunk's size, past the page cache. The file stays, so that it can be read again beside what is
measured: a disk is shared, too.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .bench_files import unnamed_file
from .bench_fio import FioJob, fio_version, run_fio
from .errors import CommandError
from .signals import hold_signals

__all__ = ["Disk", "DiskSpeed", "bytes_to_read", "directory_of", "open_disk"]

_DEPTH = 8
"""Blocks under way at a time."""
_MOST = 4 << 30
"""Bytes of the file at most: enough for some seconds."""
_AGAIN = 3.0
"""Seconds of reading again, at most."""


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Bytes a second."""

    method: str  #: fio's version, or "pread"
    sequential: float
    random: float
    block: int  #: bytes
    depth: int  #: blocks under way

    @property
    def best(self) -> float:
        """The faster of the two: what a tier that reads in either order is measured against."""
        return max(self.sequential, self.random)


def directory_of(path: Path) -> Path | None:
    """The directory of a spill file, existing or not; None for a block device."""
    if path.is_block_device():
        return None
    return path if path.is_dir() else path.parent


def bytes_to_read(size: int, block: int) -> int:
    """What the file has that stands for a spill file of `size` bytes."""
    return max(min(size, _MOST) // block, 2 * _DEPTH) * block


@contextmanager
def open_disk(path: Path, *, size: int, block: int) -> Iterator[Disk]:
    """Measure how fast a spill file of `size` bytes can be read in blocks of `block`. Raises CommandError."""
    size = bytes_to_read(size, block)
    with ExitStack() as undo:
        try:
            name, made = undo.enter_context(_file(path, size))
            disk = Disk(name, size // block, block, made)
        except OSError as error:
            raise CommandError(
                f"--spill: {path} cannot be measured: {(error.strerror or str(error)).lower()}"
            ) from None
        yield disk


class Disk:
    """A file to read, or a block device; `speed` is what it had when it was opened."""

    def __init__(self, name: str, blocks: int, block: int, made: bool) -> None:
        self._name, self._blocks, self._block = name, blocks, block
        self._fio = shutil.which("fio") is not None
        method = fio_version() if self._fio else "pread"
        if made:
            self._transfer("write")
        self.speed = DiskSpeed(method, self._transfer("sequential"), self._transfer("read"), block, _DEPTH)

    def rate(self) -> float:
        """Bytes a second now, in the order in which it was faster. Raises CommandError and OSError."""
        order = "read" if self.speed.random > self.speed.sequential else "sequential"
        return self._transfer(order, _AGAIN)

    def _transfer(self, direction: str, seconds: float | None = None) -> float:
        """All of it once, or for so long; `direction` as run_fio() has it. Bytes a second."""
        by = _by_fio if self._fio else _by_pread
        return by(self._name, direction, self._blocks, self._block, seconds)


@contextmanager
def _file(path: Path, size: int) -> Iterator[tuple[str, bool]]:
    """What to open, and whether it was made here and has to be written first."""
    directory = directory_of(path)
    if directory is None:
        yield str(path), False
        return
    fd = unnamed_file(directory)
    try:
        os.posix_fallocate(fd, 0, size)
        yield f"/proc/{os.getpid()}/fd/{fd}", True
    finally:
        os.close(fd)


def _by_fio(name: str, direction: str, blocks: int, block: int, seconds: float | None) -> float:
    memory = os.memfd_create("greenboost-bench", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, _DEPTH * block)
        job = FioJob(name, f"/proc/{os.getpid()}/fd/{memory}", blocks)
        return run_fio([job], direction, chunk=block, depth=_DEPTH, offset=0, seconds=seconds).rate
    finally:
        os.close(memory)


def _by_pread(name: str, direction: str, blocks: int, block: int, seconds: float | None) -> float:
    write = direction == "write"
    offsets = [number * block for number in range(blocks)]
    if direction == "read":
        random.shuffle(offsets)
    fd = os.open(name, (os.O_WRONLY if write else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC)
    buffers = [mmap.mmap(-1, block) for _ in range(_DEPTH)]
    content = os.urandom(block)
    for buffer in buffers:
        buffer[:] = content

    ends = math.inf

    def lane(number: int) -> int:
        for done, offset in enumerate(offsets[number::_DEPTH]):
            if done and time.perf_counter() > ends:
                return done
            move = os.pwritev if write else os.preadv
            if (moved := move(fd, [buffers[number]], offset)) != block:
                raise OSError(errno.EIO, f"{moved} of {block} bytes were moved")
        return len(offsets[number::_DEPTH])

    lanes = ThreadPoolExecutor(_DEPTH)
    try:
        began = time.perf_counter()
        if seconds is not None:
            ends = began + seconds
        moved = sum(lanes.map(lane, range(_DEPTH)))
        return moved * block / (time.perf_counter() - began)
    finally:
        ends = 0.0
        with hold_signals():  # until nobody uses what is closed next
            lanes.shutdown()
        os.close(fd)
        for buffer in buffers:
            buffer.close()
