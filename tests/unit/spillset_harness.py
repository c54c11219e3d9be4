# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of T3 as a whole share: sets over real files, and what is to be seen of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from tests.unit.nvme_harness import CHUNK, DATA, MemfdArena, arena_of, spill_size
from tierd.model import SpillOptions
from tierd.nvme import SpillFile, SpillSet, Stored, open_spill_files, open_spill_set
from tierd.nvme.path import SpillPath


@asynccontextmanager
async def spill_over(directory: Path, *extents: int, chunk: int = CHUNK) -> AsyncIterator[SpillSet]:
    """A set over files of so many extents each, which are named 0, 1 and so on."""
    paths = [(str(directory / str(n)), spill_size(size, chunk)) for n, size in enumerate(extents)]
    async with open_spill_set(open_spill_files(paths, chunk), chunk=chunk) as spill:
        yield spill
    assert os.listdir(directory) == []


def filled_arena() -> Iterator[MemfdArena]:
    """Eight slots, of which the first holds noise; for pytest.fixture()."""
    with arena_of(8) as arena:
        arena[0] = os.urandom(CHUNK)
        yield arena


def opened(path: Path, extents: int, **options: object) -> SpillFile:
    return SpillFile.open(str(path), spill_size(extents), CHUNK, options=SpillOptions(**options))  # type: ignore[arg-type]


def used(spill: SpillSet) -> list[int]:
    """Extents in use, by path."""
    return [path.used // CHUNK for path in spill.snapshot()]


def states(spill: SpillSet) -> list[str]:
    return [path.state for path in spill.snapshot()]


def corrupt(path: Path, stored: Stored) -> None:
    """Changes one bit of what is stored, behind everybody's back."""
    fd = os.open(path, os.O_RDWR)
    try:
        where = DATA + stored.index * CHUNK + 777
        byte = os.pread(fd, 1, where)[0]
        os.pwrite(fd, bytes([byte ^ 1]), where)
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def gated(patch: pytest.MonkeyPatch, transfer: str, name: Path) -> Iterator[tuple[trio.Event, trio.Event]]:
    """Transfers of the path of this name wait: an event for the first that came, one to let them go on."""
    came, go_on = trio.Event(), trio.Event()
    real = getattr(SpillFile, transfer)

    async def wait(self: SpillFile, *args: object, **kwargs: object) -> None:
        if self.path == str(name):
            came.set()
            await go_on.wait()
        await real(self, *args, **kwargs)

    with patch.context() as inner:
        inner.setattr(SpillFile, transfer, wait)
        yield came, go_on


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not true():
            await trio.lowlevel.checkpoint()


def path_of(spill: SpillSet, name: Path) -> SpillPath:
    path = spill.find(str(name))
    assert path is not None
    return path
