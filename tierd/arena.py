# SPDX-License-Identifier: GPL-2.0-or-later
"""T2's memory: arenas that the daemon and one shim map together, of memfds or of the module's buffers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import repeat

__all__ = ["HUGE_PAGE", "Arena", "ArenaError", "ArenaPool", "Maker", "NotAnArenaError", "memfd", "open_pool"]

HUGE_PAGE = 2 << 20
"""Bytes."""

Maker = Callable[[int, int], int]
"""(id, bytes) -> a descriptor of so many zero bytes, to be mapped shared, whose size nobody can change.
It is the caller's. Raises OSError; may take as long as zeroing does."""

_MFD_NOEXEC_SEAL = 0x0008
_MADV_POPULATE_WRITE = 23
_MADV_COLLAPSE = 25
_POPULATE_MOST = 8  # threads
_POPULATE_PART = 32 << 20
# A shim can then neither pull pages from under the daemon's pinned buffers and mappings (SIGBUS, or a
# write by the kernel to pages that are no longer the arena's) nor make T2 larger than its limit.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.madvise.restype = ctypes.c_int
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_libc.mmap.restype = ctypes.c_size_t
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_size_t(-1).value


class ArenaError(Exception):
    """An arena could not be made; the text says why."""


class NotAnArenaError(ArenaError):
    """What was said to be an arena is none."""


class Arena:
    """What `make` makes of `size` bytes, mapped as `memory`; slot n begins at byte n * chunk.

    The pages are zero at first, and never given to a second session. Owns the fd and the mapping until
    close(). Raises ArenaError.
    """

    def __init__(self, id: int, size: int, chunk: int, make: Maker | None = None) -> None:
        assert size > 0
        assert size % chunk == 0
        self.id = id
        self.size = size
        self.chunk = chunk
        self.fd = -1
        try:
            self.fd = (make or memfd)(id, size)
            self._mapping, self.memory = _map(self.fd, size)
        except OSError as error:
            if self.fd >= 0:
                os.close(self.fd)
            raise ArenaError(f"no arena of {size} bytes: {error.strerror}") from error
        # Where it is asked for (`shmem_enabled` at "advise"), the small page is a huge one at once.
        with suppress(OSError):
            self._mapping.madvise(mmap.MADV_HUGEPAGE)

    @property
    def slots(self) -> int:
        """Chunks that fit."""
        return self.size // self.chunk

    @property
    def address(self) -> int:
        """Where the mapping begins in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def populate(self) -> None:
        """Allocate every page now. Takes an eighth of a second a GiB and thread: for a worker thread.

        Pinning would do it too, but on the thread that serves everybody, and with SIGBUS or the OOM
        killer where this raises ArenaError.
        """
        # Clearing pages is what takes so long, and a program that fills RAM waits for it.
        workers = min(_POPULATE_MOST, len(os.sched_getaffinity(0)))
        part = -(-self.size // workers // _POPULATE_PART) * _POPULATE_PART
        with ThreadPoolExecutor(workers) as pool:
            errors = set(pool.map(self._populate, range(0, self.size, part), repeat(part)))
        if error := next(iter(errors - {0}), 0):
            raise ArenaError(f"no memory for an arena of {self.size} bytes: {os.strerror(error)}")

    def _populate(self, begin: int, size: int) -> int:
        """0 or an errno value.

        In huge pages as far as memory has them, which is faster here, where it is mapped and where it is
        registered. Shared memory has none by default (`shmem_enabled`), and only MADV_COLLAPSE does not
        ask for that. It passes over what is empty, so there is a small page first. What it refuses is in
        small pages: where memory is in pieces, pages in use, the module's memory.
        """
        end = min(begin + size, self.size)
        for number, huge in enumerate(range(begin, end, HUGE_PAGE)):
            # Not the first of each: where memory is interleaved, all of those are on one node.
            small = huge + number * mmap.PAGESIZE % HUGE_PAGE
            self._advise(small, small + mmap.PAGESIZE, _MADV_POPULATE_WRITE)
        if self._advise(begin, end, _MADV_COLLAPSE) == errno.ENOMEM:
            self._populate_each(begin, end)
        return self._advise(begin, end, _MADV_POPULATE_WRITE)

    def _populate_each(self, begin: int, end: int) -> None:
        """One huge page at a time, as the kernel ends with the first that it has no room for.

        To find room for small ones it gives up what it has cached, so there may be huge ones a moment later.
        """
        for _ in range(2):
            for huge in range(begin, end, HUGE_PAGE):
                if self._advise(huge, huge + HUGE_PAGE, _MADV_COLLAPSE) and self._advise(
                    huge, huge + HUGE_PAGE, _MADV_POPULATE_WRITE
                ):
                    return

    def _advise(self, begin: int, end: int, advice: int) -> int:
        """0 or an errno value. Not mmap.madvise(), which holds the interpreter's lock meanwhile."""
        if _libc.madvise(self.address + begin, end - begin, advice) == 0:
            return 0
        return ctypes.get_errno()

    def close(self) -> None:
        """Give the memory back; once. Whoever has it pinned or mapped keeps the pages till then.

        Where nobody has, pages are freed here, in up to 0.2 s a GiB.
        """
        fd, self.fd = self.fd, -1
        if fd < 0:
            raise ValueError(f"arena {self.id} is closed already")
        self.memory.release()
        self._mapping.close()
        os.close(fd)


def _map(fd: int, size: int) -> tuple[mmap.mmap, memoryview]:
    """Map it where a huge page may begin. Returns the mapping to close and its part. Raises OSError.

    mmap.mmap() does not let anybody choose, so it lies over the inside of another one.
    """
    slack = HUGE_PAGE - mmap.PAGESIZE
    around = mmap.mmap(-1, size + slack, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    whole = memoryview(around)
    address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    begin = -address % HUGE_PAGE
    access, how = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
    if _libc.mmap(address + begin, size, access, how, fd, 0) == _MAP_FAILED:
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        whole.release()
        around.close()
        raise error
    return around, whole[begin : begin + size]


def memfd(id: int, size: int) -> int:
    """A sealed memfd; see Maker."""
    name = f"greenboost-arena-{id}"
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 6.3
            raise
        fd = os.memfd_create(name, flags)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_adopted(fd: int, size: int) -> None:
    """Refuse what a shim could pull from under the daemon's mapping. Raises NotAnArenaError."""
    name = os.readlink(f"/proc/self/fd/{fd}")
    if name.startswith("/dmabuf:"):
        with open(f"/proc/self/fdinfo/{fd}") as info:
            if _exporter(info) != "greenboost":
                raise NotAnArenaError("a DMA-BUF that is not the module's cannot be an arena")
        found = os.lseek(fd, 0, os.SEEK_END)
    else:
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            raise NotAnArenaError("an arena is a memfd or a buffer of the module's") from None
        # Huge pages of their own file system are not promised by its size: touching one that is not to be
        # had is a SIGBUS.
        if not name.startswith("/memfd:") or os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
            raise NotAnArenaError("an arena is a memfd of ordinary pages")
        if seals & (_SEALS | fcntl.F_SEAL_WRITE) != _SEALS:
            raise NotAnArenaError("an arena's memfd is sealed against changes of its size, and nothing else")
        found = os.fstat(fd).st_size
    if found != size:
        raise NotAnArenaError(f"an arena has {size} bytes, not {found}")


def _exporter(info: Iterable[str]) -> str:
    """Who made a DMA-BUF. The first line counts: a name, which anybody may give it, comes after."""
    lines = (line.removeprefix("exp_name:\t") for line in info if line.startswith("exp_name:"))
    return next(lines, "").removesuffix("\n")


class ArenaPool:
    """All arenas there are, at most `limit` of `arena_bytes` bytes each.

    Arenas may be created and closed in several threads at a time.
    """

    def __init__(self, *, limit: int, arena_bytes: int, chunk: int, make: Maker = memfd) -> None:
        self.limit = limit
        self.arena_bytes = arena_bytes
        self.chunk = chunk
        self._make = make
        self._arenas: dict[int, Arena] = {}

    def __len__(self) -> int:
        return len(self._arenas)

    def __iter__(self) -> Iterator[Arena]:
        return iter(tuple(self._arenas.values()))

    def create(self, id: int) -> Arena:
        """A new arena, its pages allocated: for a worker thread.

        Raises ArenaError when the limit is reached or the kernel refuses.
        """
        assert id not in self._arenas
        if len(self._arenas) >= self.limit:
            raise ArenaError(f"all {self.limit} arenas exist already")
        arena = Arena(id, self.arena_bytes, self.chunk, self._make)
        try:
            arena.populate()
        except BaseException:
            arena.close()
            raise
        self._arenas[id] = arena
        return arena

    def adopt(self, id: int, fd: int) -> Arena:
        """The arena `id` of a daemon before this one, whose descriptor a shim has kept: for a worker thread.

        The descriptor is the pool's from here on. Raises NotAnArenaError for what cannot be one, and
        ArenaError where there is no memory for it.
        """
        try:
            _check_adopted(fd, self.arena_bytes)
        except BaseException:
            os.close(fd)
            raise
        arena = Arena(id, self.arena_bytes, self.chunk, lambda *_: fd)
        try:
            arena.populate()  # holes that were punched meanwhile
        except BaseException:
            arena.close()
            raise
        self._arenas[id] = arena
        return arena

    def close(self, arena: Arena) -> None:
        """Close `arena`, which nothing may be moving into or out of any more."""
        del self._arenas[arena.id]
        arena.close()


@contextmanager
def open_pool(*, limit: int, arena_bytes: int, chunk: int, make: Maker = memfd) -> Iterator[ArenaPool]:
    """An ArenaPool whose arenas are closed at the end."""
    pool = ArenaPool(limit=limit, arena_bytes=arena_bytes, chunk=chunk, make=make)
    try:
        yield pool
    finally:
        for arena in pool:
            pool.close(arena)
