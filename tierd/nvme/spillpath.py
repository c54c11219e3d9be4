# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening a spill path: proving that it can be used and that nothing of anybody is overwritten.

A path is one of four things, and each has its own rule for what may be done to it:

- nothing yet: a file is created, and removed when it is closed in order;
- a directory: a file without a name is created in it, which goes with its last descriptor;
- a file: used when it is empty or one of ours, and kept;
- a block device: used when it is one of ours or blank at both ends.

Whatever is refused leaves the file system as it was.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

from tierd.filelock import lock_file
from tierd.model import format_size

from ._uring import lib
from .errors import SpillPathError
from .superblock import BLOCK, State, Superblock, SuperblockError

__all__ = ["DATA_OFFSET", "OpenPath", "is_same_file", "open_spill_path", "write_superblock"]

DATA_OFFSET = 1 << 20
"""Where the extents begin, bytes: the superblock in front of them keeps every transfer aligned."""

_OPEN = os.O_RDWR | os.O_CLOEXEC

_LOCK_PATIENCE = 1.0
"""Seconds to wait for a lock that may be a dead daemon's."""

_DEVICE_PATIENCE = 3.0
"""Seconds to wait for a device that may just have been closed: Linux 6.1 keeps what was in a ring open
for one more."""


@dataclass(frozen=True, slots=True)
class OpenPath:
    """A spill path that is ours for as long as `fd` is open; who gets it closes it."""

    path: str
    fd: int  #: opened with O_DIRECT, locked
    size: int  #: bytes that may be used, DATA_OFFSET included
    superblock: Superblock
    named: bool  #: False when no directory entry leads to it
    adopted: bool  #: left behind by a daemon that did not end in order


@dataclass(frozen=True, slots=True)
class _Wanted:
    path: str
    size: int | None
    chunk: int
    ephemeral: bool
    force: bool

    @property
    def minimum(self) -> int:
        return DATA_OFFSET + self.chunk

    def refuse(self, wrong: str, remedy: str) -> SpillPathError:
        return SpillPathError(self.path, wrong, remedy)


def open_spill_path(
    path: str, size: int | None, chunk: int, *, ephemeral: bool = False, force: bool = False
) -> OpenPath:
    """Opens a file, directory or block device to hold extents of `chunk` bytes.

    `size`, in bytes, is needed where a file has to be created; on something that exists it is an
    upper bound for a device, and a file is extended to it. With `ephemeral` a file that has to be
    created never gets a name, so that nothing is left behind even by SIGKILL. `force` takes a block
    device whatever it holds; it changes nothing for files, which can be deleted. Blocks for as long as
    the file system takes to allocate. Raises SpillPathError.
    """
    wanted = _Wanted(path, size, chunk, ephemeral, force)
    if size is not None:
        _check_size(wanted, size)
    # Twice at most: a file may appear or go between two system calls when another daemon starts or
    # ends at the same moment. Then the second look finds the name settled, or locked.
    for _ in range(2):
        with ExitStack() as undo:
            opened = _open(wanted, undo)
            if opened is not None:
                undo.pop_all()
                return opened
    raise wanted.refuse("appears and vanishes while it is opened", "see which program replaces it")


def _open(wanted: _Wanted, undo: ExitStack) -> OpenPath | None:
    try:
        mode = os.stat(wanted.path).st_mode
    except FileNotFoundError:
        return _create(wanted, undo)
    except OSError as error:
        raise _cannot_open(wanted, error) from error
    if stat.S_ISDIR(mode):
        return _create_unnamed(wanted, wanted.path, undo)
    if stat.S_ISREG(mode):
        return _open_file(wanted, undo)
    if stat.S_ISBLK(mode):
        return _open_device(wanted, undo)
    raise wanted.refuse("is neither a file, a directory nor a block device", "name one of these")


# The four cases. Each returns None where another process changed the name meanwhile.


def _create(wanted: _Wanted, undo: ExitStack) -> OpenPath | None:
    parent = os.path.dirname(wanted.path) or "."
    if wanted.path.endswith("/") or not os.path.isdir(parent):
        missing = wanted.path if wanted.path.endswith("/") else parent
        raise wanted.refuse(
            f"the directory {missing} does not exist", f"create it with 'mkdir -p {missing}' first"
        )
    if wanted.size is None:
        raise wanted.refuse("does not exist and no size is given", "give one, as in PATH:64GiB")
    if wanted.ephemeral:
        return _create_unnamed(wanted, parent, undo)
    try:
        fd = os.open(wanted.path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if os.path.islink(wanted.path):
            raise wanted.refuse("is a symbolic link to nothing", "remove it or mend it") from None
        return None
    except OSError as error:
        raise _cannot_open(wanted, error) from error
    undo.callback(os.close, fd)
    # Only who holds the lock removes the name: a daemon that opened the file just now has it then.
    _lock(wanted, fd)
    undo.callback(os.unlink, wanted.path)
    return _fill(wanted, fd, wanted.size, None, named=True, created=True)


def _create_unnamed(wanted: _Wanted, directory: str, undo: ExitStack) -> OpenPath:
    if wanted.size is None:
        raise wanted.refuse("is a directory and no size is given", "give one, as in DIRECTORY:64GiB")
    try:
        fd = os.open(directory, _OPEN | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise _cannot_open(wanted, error) from error
        # This file system has no O_TMPFILE.
        try:
            fd, name = tempfile.mkstemp(prefix=".greenboost-", dir=directory)
        except OSError as second:
            raise _cannot_open(wanted, second) from second
        os.unlink(name)
    undo.callback(os.close, fd)
    return _fill(wanted, fd, wanted.size, None, named=False, created=True)


def _open_file(wanted: _Wanted, undo: ExitStack) -> OpenPath | None:
    try:
        fd = os.open(wanted.path, _OPEN)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_open(wanted, error) from error
    undo.callback(os.close, fd)
    _lock(wanted, fd)
    if not is_same_file(wanted.path, fd):
        return None
    found = os.fstat(fd)
    size = wanted.size
    if size is None:
        size = found.st_size
        if not size:
            raise wanted.refuse("is empty and no size is given", "give one, as in PATH:64GiB")
    _set_direct(wanted, fd)
    previous = _read_superblock(wanted, fd)
    if found.st_size and previous is None:
        raise wanted.refuse(
            "is a file with content that is not GreenBoost's", "name another path, or delete it first"
        )
    _check_size(wanted, size)
    if stat.S_IMODE(found.st_mode) & 0o077:
        try:
            os.fchmod(fd, 0o600)  # it will hold memory of applications
        except OSError as error:
            raise wanted.refuse(
                "others may read it, and its mode cannot be changed", "chmod it 600"
            ) from error
        undo.callback(os.fchmod, fd, stat.S_IMODE(found.st_mode))
    if size > found.st_size:
        undo.callback(os.ftruncate, fd, found.st_size)
    return _fill(wanted, fd, size, previous, named=True, created=False)


def _open_device(wanted: _Wanted, undo: ExitStack) -> OpenPath:
    fd = _open_exclusively(wanted)
    undo.callback(os.close, fd)
    _lock(wanted, fd)
    _set_direct(wanted, fd)
    whole = os.lseek(fd, 0, os.SEEK_END)
    size = whole if wanted.size is None else min(wanted.size, whole)
    _check_size(wanted, size)
    previous = _device_superblock(wanted, fd)
    if previous is None and not wanted.force and not _is_blank(wanted, fd, whole):
        raise wanted.refuse(
            "is a block device that holds something else: a file system or a partition table, maybe",
            "make sure that nobody needs it, then use 'greenboost spill add --force', or wipe it with "
            "'wipefs --all' and 'blkdiscard --zeroout'",
        )
    superblock = _next_superblock(wanted, previous, created=False)
    _write_first(wanted, fd, superblock)
    adopted = previous is not None and previous.state is State.OPEN
    return OpenPath(wanted.path, fd, size, superblock, named=True, adopted=adopted)


def _open_exclusively(wanted: _Wanted) -> int:
    patience = time.monotonic() + _DEVICE_PATIENCE
    while True:
        try:
            # For a device O_EXCL means: unless it is mounted, or part of a RAID or volume group.
            return os.open(wanted.path, _OPEN | os.O_EXCL)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise _cannot_open(wanted, error) from error
            if time.monotonic() > patience:
                raise wanted.refuse("is mounted or otherwise in use", "name a device that is free") from error
            time.sleep(0.02)


# What they share.


def _fill(
    wanted: _Wanted, fd: int, size: int, previous: Superblock | None, *, named: bool, created: bool
) -> OpenPath:
    """Makes a locked file usable."""
    _set_direct(wanted, fd)
    superblock = _next_superblock(wanted, previous, created)
    if previous is None:
        _write_first(wanted, fd, superblock)  # so that a crash from here on leaves a file known as ours
    _allocate(wanted, fd, size)
    if previous is not None:
        _write_first(wanted, fd, superblock)
    adopted = previous is not None and previous.state is State.OPEN
    return OpenPath(wanted.path, fd, size, superblock, named, adopted)


def _next_superblock(wanted: _Wanted, previous: Superblock | None, created: bool) -> Superblock:
    if previous is None:
        return Superblock(wanted.chunk, 1, State.OPEN, created)
    return replace(previous, chunk=wanted.chunk, generation=previous.generation + 1, state=State.OPEN)


def _check_size(wanted: _Wanted, size: int) -> None:
    if size < wanted.minimum:
        raise wanted.refuse(
            f"{format_size(size)} is too small for a chunk of {format_size(wanted.chunk)}",
            f"give it {format_size(wanted.minimum)} at least",
        )


def _cannot_open(wanted: _Wanted, error: OSError) -> SpillPathError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
        return wanted.refuse(
            f"cannot be written by user {os.geteuid()} ({error.strerror})",
            "change its owner or mode, or name another path",
        )
    return wanted.refuse(f"cannot be opened ({error.strerror})", "name another path")


def _lock(wanted: _Wanted, fd: int) -> None:
    """Keeps every other daemon out for as long as the descriptor is open."""
    try:
        locked = lock_file(fd, patience=_LOCK_PATIENCE)
    except OSError as error:
        raise wanted.refuse(f"cannot be locked ({error.strerror})", "name another path") from error
    if not locked:
        raise wanted.refuse(
            "is in use by this or another GreenBoost daemon",
            "name another path, or take it out of use there with 'greenboost spill remove'",
        )


def is_same_file(path: str, fd: int) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


def _set_direct(wanted: _Wanted, fd: int) -> None:
    # Not at open(): the kernel refuses O_DIRECT only after O_CREAT made the file.
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        raise wanted.refuse(
            f"its file system has no O_DIRECT ({error.strerror})",
            "choose a path on a local disk with ext4 or XFS, for example",
        ) from error


def _read(wanted: _Wanted, fd: int, length: int, offset: int) -> bytes:
    with mmap.mmap(-1, length) as page:  # O_DIRECT wants aligned memory
        try:
            return page[: os.preadv(fd, [page], offset)]
        except OSError as error:
            raise wanted.refuse(f"cannot be read ({error.strerror})", "see the kernel log") from error


def _read_superblock(wanted: _Wanted, fd: int) -> Superblock | None:
    try:
        return Superblock.unpack(_read(wanted, fd, BLOCK, 0))
    except SuperblockError as error:
        raise wanted.refuse(str(error), "delete the file, or wipe the device, if nobody needs it") from error


def _device_superblock(wanted: _Wanted, fd: int) -> Superblock | None:
    try:
        return _read_superblock(wanted, fd)
    except SpillPathError:
        if wanted.force:
            return None
        raise


def _is_blank(wanted: _Wanted, fd: int, whole: int) -> bool:
    """Whether both ends are zero: partition tables and some RAID headers are at the end."""
    end = (whole - DATA_OFFSET) // BLOCK * BLOCK
    return not any(any(_read(wanted, fd, DATA_OFFSET, offset)) for offset in (0, end))


def write_superblock(fd: int, superblock: Superblock) -> None:
    """Puts it on the device. Raises OSError."""
    with mmap.mmap(-1, BLOCK) as page:
        page[:] = superblock.pack()
        os.pwritev(fd, [page], 0)
    os.fdatasync(fd)


def _write_first(wanted: _Wanted, fd: int, superblock: Superblock) -> None:
    try:
        write_superblock(fd, superblock)
    except OSError as error:
        raise _cannot_allocate(wanted, fd, error) from error


def _allocate(wanted: _Wanted, fd: int, size: int) -> None:
    """Gives the file all its blocks now: a full disk must not be found out when a chunk is written."""
    missing = size - os.fstat(fd).st_blocks * 512
    if missing > _free_space(fd):  # asked first, for filling the disk and failing then hurts others
        raise _no_space(wanted, fd, size)
    error = -lib.gb_fallocate(fd, 0, size)
    if error:
        raise _cannot_allocate(wanted, fd, OSError(error, os.strerror(error)))


def _free_space(fd: int) -> int:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize


def _no_space(wanted: _Wanted, fd: int, size: int) -> SpillPathError:
    free = _free_space(fd)
    return wanted.refuse(
        f"{format_size(size)} do not fit: its file system has {format_size(free)} free",
        "give a smaller size or name a path on another disk",
    )


def _cannot_allocate(wanted: _Wanted, fd: int, error: OSError) -> SpillPathError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(wanted, fd, wanted.size or wanted.minimum)
    return wanted.refuse(f"cannot be preallocated ({error.strerror})", "name a path on another file system")
