# SPDX-License-Identifier: GPL-2.0-or-later
"""What arenas are made of, with a stand-in for the module; the guests have the module itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import cast

import pytest

from tierd.arena import ArenaError, ArenaPool, memfd
from tierd.arenasource import choose, open_device
from tierd.device import Device
from tierd.nvme import ring
from tierd.startup import StartupError

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

CHUNK = 2 << 20


class FakeDevice:
    """Allocates what a memfd has, or refuses."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.allocated: list[int] = []

    def allocate(self, size: int) -> int:
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.allocated.append(size)
        return memfd(0, size)


def device(refuses: int = 0) -> Device:
    return cast(Device, FakeDevice(refuses))


def test_the_modules_memory_where_it_is_there() -> None:
    module = device()
    source = choose("auto", module)
    assert (source.name, source.why, source.device) == ("module", "", module)
    pool = ArenaPool(limit=1, arena_bytes=2 * CHUNK, chunk=CHUNK, make=source.make)
    arena = pool.create(1)
    assert cast(FakeDevice, module).allocated == [CHUNK, 2 * CHUNK]
    pool.close(arena)


def test_memfds_where_it_is_not() -> None:
    with open_device("/dev/null/none") as none:
        pass
    assert none == "/dev/null/none: Not a directory"
    with open_device("/dev/greenboost-none") as none:
        source = choose("auto", none)
    assert (source.name, source.why) == (
        "memfd",
        "there is no /dev/greenboost-none: the module greenboost is not loaded",
    )
    with pytest.raises(StartupError, match="are to come from the module, but there is no"):
        choose("module", none)


def test_without_permission_the_group_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with open_device() as none:
            pass
    assert none == "/dev/greenboost may not be opened: add the user to the group greenboost"


def test_what_is_asked_for_is_taken() -> None:
    module = device()
    assert choose("memfd", module).name == "memfd"
    # It is heard all the same.
    assert choose("memfd", module).device is module
    assert choose("memfd", "no device").why == "asked for"
    assert choose("module", module).name == "module"


def test_a_kernel_that_does_not_register_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(ring.Ring, "add_buffer", refuse)
    source = choose("auto", device())
    assert source.name == "memfd"
    assert "io_uring does not register the module's memory (operation not supported)" in source.why
    assert choose("module", device()).name == "module"


def test_a_module_without_memory() -> None:
    assert "has no memory: Disk quota exceeded" in choose("auto", device(errno.EDQUOT)).why
    with pytest.raises(StartupError, match="has no memory"):
        choose("module", device(errno.ENOTTY))


def test_what_the_module_refuses_later_is_an_arena_that_is_not_made() -> None:
    module = device()
    pool = ArenaPool(limit=9, arena_bytes=CHUNK, chunk=CHUNK, make=choose("auto", module).make)
    cast(FakeDevice, module).refuses = errno.ENOMEM
    with pytest.raises(ArenaError, match="no arena of 2097152 bytes: Cannot allocate memory"):
        pool.create(1)
    assert len(pool) == 0
