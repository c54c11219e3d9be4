# SPDX-License-Identifier: GPL-2.0-or-later
"""The module's device as Python sees it; device.h is the same for tests in C."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
DEVICE = "/dev/greenboost"
ATTRIBUTES = Path("/sys/class/greenboost/greenboost")
PARAMETERS = Path("/sys/module/greenboost/parameters")

_ALLOC = struct.Struct("=QIIQiI")  # struct greenboost_alloc
_IOC_ALLOC = 3 << 30 | _ALLOC.size << 16 | 0xE7 << 8


def attribute(name: str) -> int:
    return int((ATTRIBUTES / name).read_text())


def set_parameter(name: str, value: int | str) -> None:
    (PARAMETERS / name).write_text(str(value))


def allocate(device: int, size: int, node: int | None = None) -> tuple[int, int]:
    """A buffer's descriptor, and how much of it is in pages of 2 MiB. Raises OSError."""
    flags = 0 if node is None else 1
    answer = fcntl.ioctl(device, _IOC_ALLOC, _ALLOC.pack(size, flags, node or 0, 0, 0, 0))
    _, _, _, huge, fd, _ = _ALLOC.unpack(answer)
    return fd, huge


@contextmanager
def buffer(size: int, node: int | None = None) -> Iterator[tuple[int, int]]:
    """As allocate() has it, through a file of its own."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fd, huge = allocate(device, size, node)
    finally:
        os.close(device)
    try:
        yield fd, huge
    finally:
        os.close(fd)


@contextmanager
def mapped(size: int) -> Iterator[tuple[mmap.mmap, int]]:
    """A buffer's memory, and how much of it is in pages of 2 MiB."""
    with buffer(size) as (fd, huge), mmap.mmap(fd, size) as memory:
        yield memory, huge


def wait_until_unused() -> None:
    """What has a descriptor or mapping may be worked off a little later, by a thread of the kernel's."""
    deadline = time.monotonic() + 120
    while attribute("used_bytes") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert attribute("used_bytes") == 0


def empty_pool() -> None:
    """Through the shrinker, which is asked for about half of it each time."""
    for _ in range(20):
        if not attribute("pool_bytes"):
            break
        Path("/proc/sys/vm/drop_caches").write_text("2")
    assert attribute("pool_bytes") == 0


def meminfo(name: str, node: int | None = None) -> int:
    """Bytes."""
    path = "/proc/meminfo" if node is None else f"/sys/devices/system/node/node{node}/meminfo"
    for line in Path(path).read_text().splitlines():
        match line.split():
            case [*_, key, count, "kB"] if key == f"{name}:":
                return int(count) * 1024
    raise KeyError(name)


def free_memory(node: int | None = None) -> int:
    """Bytes that are free, those that processors keep in lists of their own included: that can be many."""
    pages, here = 0, True
    for line in Path("/proc/zoneinfo").read_text().splitlines():
        match line.split():
            case ["Node", number, "zone", _]:
                here = node in (None, int(number.rstrip(",")))
            case ["pages", "free", count] | ["count:", count] if here:
                pages += int(count)
    return pages * mmap.PAGESIZE


def bytes_on_nodes(fd: int, size: int) -> dict[int, int]:
    """Where a buffer's pages are: no free memory that comes or goes meanwhile counts."""
    with mmap.mmap(fd, size) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for line in Path("/proc/self/numa_maps").read_text().splitlines():
            start, *words = line.split()
            if int(start, 16) == address:
                counts = (word[1:].split("=") for word in words if word[0] == "N")
                return {int(node): int(pages) * mmap.PAGESIZE for node, pages in counts}
    raise KeyError(address)


def populate(memory: mmap.mmap) -> None:
    """Each of its pages comes to be there, in base pages."""
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.madvise(23)  # MADV_POPULATE_WRITE


@contextmanager
def every_other_free(size: int, step: int = mmap.PAGESIZE) -> Iterator[None]:
    """Of `size` bytes of free memory every other `step` is in use, in pages that can be moved."""
    size -= size % (2 * step)
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE) as filler:
        populate(filler)
        for offset in range(0, size, 2 * step):
            filler.madvise(mmap.MADV_DONTNEED, offset, step)
        yield


@contextmanager
def torn_memory(size: int) -> Iterator[None]:
    """Of `size` bytes, every 32nd page stays in use and cannot be moved; the others are free."""
    step = 32 * mmap.PAGESIZE
    size -= size % step
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE) as memory:
        populate(memory)
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        pinned = range(0, size, step)
        # io_uring pins what is registered with it, for good: no compaction moves these.
        parameters = (ctypes.c_uint32 * 30)()
        ring = libc.syscall(425, 4, parameters)
        assert ring >= 0, os.strerror(ctypes.get_errno())
        vectors = (ctypes.c_uint64 * (2 * len(pinned)))()
        for number, offset in enumerate(pinned):
            vectors[2 * number] = address + offset
            vectors[2 * number + 1] = mmap.PAGESIZE
        try:
            assert libc.syscall(427, ring, 0, vectors, len(pinned)) == 0, os.strerror(ctypes.get_errno())
            for offset in pinned:
                memory.madvise(mmap.MADV_DONTNEED, offset + mmap.PAGESIZE, step - mmap.PAGESIZE)
            yield
            # What is closed, a thread of the kernel's lets go of later.
            assert libc.syscall(427, ring, 1, None, 0) == 0, os.strerror(ctypes.get_errno())
        finally:
            os.close(ring)


def modules() -> list[Path]:
    return [Path(path) for path in os.environ["GREENBOOST_MODULES"].split(":")]


def insert_module(path: Path) -> None:
    subprocess.run(["insmod", str(path)], check=True)


def remove_module(name: str) -> None:
    subprocess.run(["rmmod", name], check=True)
