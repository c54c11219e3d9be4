# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a spill path can be read at best: by fio, or where there is none by threads that pread().

A file is read that lies where the spill file will lie; of a block device, the device itself. Blocks are
of a chunk's size, past the page cache.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .bench_files import unnamed_file
from .bench_fio import FioJob, fio_version, run_fio
from .errors import CommandError

__all__ = ["DiskSpeed", "directory_of", "measure_reads"]

_DEPTH = 8
"""Blocks under way at a time."""
_MOST = 4 << 30
"""Bytes of the file at most: enough for some seconds."""


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


def measure_reads(path: Path, *, size: int, block: int) -> DiskSpeed:
    """Read up to `size` bytes in blocks of `block` as fast as can be. Raises CommandError."""
    size = max(min(size, _MOST) // block, 2 * _DEPTH) * block
    try:
        with _file(path, size) as (name, made):
            if shutil.which("fio") is None:
                return _by_pread(name, size, block, made)
            return _by_fio(name, size, block, made)
    except OSError as error:
        raise CommandError(
            f"--spill: {path} cannot be measured: {(error.strerror or str(error)).lower()}"
        ) from None


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


def _by_fio(name: str, size: int, block: int, made: bool) -> DiskSpeed:
    memory = os.memfd_create("greenboost-bench", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, _DEPTH * block)
        jobs = [FioJob(name, f"/proc/{os.getpid()}/fd/{memory}", size // block)]
        if made:
            run_fio(jobs, "write", chunk=block, depth=_DEPTH, offset=0)
        rates = [
            run_fio(jobs, direction, chunk=block, depth=_DEPTH, offset=0).rate
            for direction in ("sequential", "read")
        ]
    finally:
        os.close(memory)
    return DiskSpeed(fio_version(), rates[0], rates[1], block, _DEPTH)


def _by_pread(name: str, size: int, block: int, made: bool) -> DiskSpeed:
    offsets = list(range(0, size, block))
    if made:
        _transfer(name, os.O_WRONLY, offsets, block)
    sequential = _transfer(name, os.O_RDONLY, offsets, block)
    shuffled = _transfer(name, os.O_RDONLY, random.sample(offsets, len(offsets)), block)
    return DiskSpeed("pread", sequential, shuffled, block, _DEPTH)


def _transfer(name: str, flags: int, offsets: Sequence[int], block: int) -> float:
    """Write or read a block at each offset, _DEPTH at a time; bytes a second."""
    fd = os.open(name, flags | os.O_DIRECT | os.O_CLOEXEC)
    buffers = [mmap.mmap(-1, block) for _ in range(_DEPTH)]
    content = os.urandom(block)
    for buffer in buffers:
        buffer[:] = content

    def lane(number: int) -> None:
        for offset in offsets[number::_DEPTH]:
            if flags == os.O_RDONLY:
                moved = os.preadv(fd, [buffers[number]], offset)
            else:
                moved = os.pwritev(fd, [buffers[number]], offset)
            if moved != block:
                raise OSError(errno.EIO, f"{moved} of {block} bytes were moved")

    try:
        with ThreadPoolExecutor(_DEPTH) as lanes:
            began = time.perf_counter()
            list(lanes.map(lane, range(_DEPTH)))
            return len(offsets) * block / (time.perf_counter() - began)
    finally:
        os.close(fd)
        for buffer in buffers:
            buffer.close()
