# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of tierd.nvme share: arenas, devices and file systems of their own."""

from __future__ import annotations

import mmap
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tierd.nvme import SpillSet

CHUNK = 64 << 10
"""Small, so that tests move little; nothing in tierd.nvme wants a chunk of 2 MiB."""
DATA = 1 << 20
"""Where a spill path's extents begin."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: mounts and devices are NOT tested")
needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or shutil.which("losetup") is None,
    reason="no loop devices: block devices are NOT tested",
)


def spill_size(extents: int, chunk: int = CHUNK) -> int:
    """Bytes of a spill path with so many extents."""
    return DATA + extents * chunk


class MemfdArena:
    """An arena as tierd has them."""

    def __init__(self, slots: int, chunk: int = CHUNK, id: int = 1) -> None:
        self.id = id
        self.chunk = chunk
        self.size = slots * chunk
        fd = os.memfd_create("test-arena")
        try:
            os.ftruncate(fd, self.size)
            self.mapping = mmap.mmap(fd, self.size)
        finally:
            os.close(fd)
        self.memory = memoryview(self.mapping)

    def __getitem__(self, slot: int) -> bytes:
        return bytes(self.memory[slot * self.chunk : (slot + 1) * self.chunk])

    def __setitem__(self, slot: int, content: bytes) -> None:
        self.memory[slot * self.chunk : (slot + 1) * self.chunk] = content

    def close(self) -> None:
        """Fails while anybody has the memory registered or exported."""
        self.memory.release()
        self.mapping.close()


@contextmanager
def added(spill: SpillSet, arena: MemfdArena) -> Iterator[None]:
    """The set may transfer from and to the arena."""
    spill.add_arena(arena)
    try:
        yield
    finally:
        spill.remove_arena(arena)


@contextmanager
def arena_of(slots: int, chunk: int = CHUNK, id: int = 1) -> Iterator[MemfdArena]:
    arena = MemfdArena(slots, chunk, id)
    try:
        yield arena
    finally:
        arena.close()


def _or_skip(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"'{command[0]}' is refused here ({done.stderr.strip()}): this is NOT tested")
    return done.stdout


@contextmanager
def mounted(where: Path, kind: str, options: str = "mode=0700") -> Iterator[Path]:
    """A memory file system; skips the test where even root may not mount, as in some containers."""
    where.mkdir()
    _or_skip(["mount", "-t", kind, "-o", options, "none", str(where)])
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


@contextmanager
def loop_device(backing: Path) -> Iterator[str]:
    """A block device over a file; skips the test where there can be none."""
    device = _or_skip(["losetup", "--find", "--show", str(backing)]).strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    """A lower limit for this process, resource.RLIMIT_*."""
    before, hard = resource.getrlimit(what)
    resource.setrlimit(what, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (before, hard))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, capabilities included."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
