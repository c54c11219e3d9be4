# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a spill path is, measured with the engine that will use it."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ..model import format_size
from .checks import MISSING, OK, WARNING, Check

if TYPE_CHECKING:
    from ..nvme.ring import Ring, RingBuffer, RingFile

__all__ = ["spill_check"]

_BYTES = 256 << 20
"""What is written and read: more than a drive's own RAM hides in a moment, little enough to wait for."""
_REQUEST = 16 << 20
"""Bytes of one request: the default chunk."""


def spill_check(path: Path) -> Check:
    """Write and read 256 MiB beside `path` in a file without a name; a block device is only read."""
    try:
        from ..nvme.errors import RingError
    except ImportError as error:
        return _missing(path, str(error), "build the io_uring extension: 'pip install -e .'")
    try:
        file, device = _open(path)
        try:
            write, read = trio.run(_measure, file, device)
        finally:
            os.close(file)
    except RingError as error:
        wrong, _, remedy = str(error.strerror).partition("; ")
        return _missing(path, wrong, remedy)
    except OSError as error:
        return _missing(path, *_explain(error, path))
    details: dict[str, object] = {
        "path": str(path),
        "bytes": _BYTES,
        "write_bytes_per_second": None if write is None else round(_BYTES / write),
        "read_bytes_per_second": round(_BYTES / read),
    }
    rates = f"read {_rate(read)}" if write is None else f"write {_rate(write)}, read {_rate(read)}"
    if is_tmpfs(path):
        advice = "spilling there takes the RAM that it is to relieve: use a disk"
        return Check("spill", WARNING, f"{path} is RAM (tmpfs): {rates}", advice, details=details)
    return Check("spill", OK, f"{path}: {rates}", details=details)


def _missing(path: Path, wrong: str, remedy: str) -> Check:
    details = {"path": str(path)}
    return Check(
        "spill", MISSING, f"{path}: {wrong}", f"it cannot hold spilled chunks: {remedy}", details=details
    )


def is_tmpfs(path: Path) -> bool:
    """Whether the innermost mount that holds `path` is one."""
    best, kind = Path(), ""
    target = path.resolve()
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, type_, *_ = line.split(" ")
        mount = Path(where.encode().decode("unicode_escape"))
        if target.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, type_
    return kind == "tmpfs"


def _rate(seconds: float) -> str:
    return f"{_BYTES / seconds / 1e9:.2f} GB/s"


def _explain(error: OSError, path: Path) -> tuple[str, str]:
    reason = (error.strerror or str(error)).lower()
    match error.errno:
        case errno.ENOSPC:
            return reason, f"make {format_size(_BYTES)} of room there"
        case errno.EINVAL | errno.EOPNOTSUPP:
            return "the file system has no O_DIRECT", "use a file on ext4, XFS or Btrfs, or a block device"
        case errno.ENOENT:
            return reason, f"create {path.parent} first"
        case _:
            return reason, "use a path that you may write to"


def _open(path: Path) -> tuple[int, bool]:
    """A file descriptor to measure on, and whether it is a block device's."""
    if path.exists() and stat.S_ISBLK(path.stat().st_mode):
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC), True
    directory = path if path.is_dir() else path.parent
    flags = os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC
    try:
        # Without a name, so that nothing is left behind however we end.
        return os.open(directory, flags | os.O_TMPFILE, 0o600), False
    except OSError as error:
        # EISDIR and EOPNOTSUPP: no O_TMPFILE there. EINVAL is O_DIRECT's.
        if error.errno not in (errno.EISDIR, errno.EOPNOTSUPP):
            raise
    created, name = tempfile.mkstemp(prefix=".greenboost-", dir=directory)
    os.close(created)
    try:
        return os.open(name, flags), False
    finally:
        os.unlink(name)


async def _measure(fd: int, device: bool) -> tuple[float | None, float]:
    """Seconds to write (None for a device) and to read _BYTES."""
    from ..nvme.ring import open_ring

    if device:
        if os.lseek(fd, 0, os.SEEK_END) < _BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        await trio.to_thread.run_sync(os.posix_fallocate, fd, 0, _BYTES)
    async with open_ring() as ring:
        with mmap.mmap(-1, _REQUEST * 4) as memory:
            # Something that no drive compresses away.
            memory.write(os.urandom(_REQUEST) * 4)
            with memoryview(memory) as view:
                file, buffer = ring.add_file(fd), ring.add_buffer(view)
                try:
                    write = None if device else await _timed(ring, file, buffer, write=True)
                    return write, await _timed(ring, file, buffer, write=False)
                finally:
                    ring.remove_buffer(buffer)
                    ring.remove_file(file)


async def _timed(ring: Ring, file: RingFile, buffer: RingBuffer, *, write: bool) -> float:
    transfer = ring.write if write else ring.read
    lanes = buffer.length // _REQUEST

    async def lane(number: int) -> None:
        for at in range(number * _REQUEST, _BYTES, lanes * _REQUEST):
            await transfer(file, buffer, number * _REQUEST, _REQUEST, at)

    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(lanes):
            nursery.start_soon(lane, number)
    return trio.current_time() - begin
