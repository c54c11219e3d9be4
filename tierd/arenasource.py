# SPDX-License-Identifier: GPL-2.0-or-later
"""What arenas are made of: the module's memory where that is there and works, else memfds."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .arena import Maker, memfd
from .device import DEVICE, Device
from .nvme.errors import MemlockError, RingError
from .nvme.ring import Ring
from .startup import StartupError

__all__ = ["ArenaSource", "choose", "open_arena_source", "open_device"]

_PROBE = 2 << 20


@dataclass(frozen=True, slots=True)
class ArenaSource:
    """What arenas are made of, and why not of anything better."""

    name: str  #: "module" or "memfd"
    why: str  #: for people; empty where nothing better is known
    make: Maker = memfd
    device: Device | None = None  #: the module's, also where its memory is not used


@contextmanager
def open_device(path: str = DEVICE) -> Iterator[Device | str]:
    """The module's device, or why it cannot be had."""
    try:
        device = Device(path)
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENXIO | errno.ENODEV:
                yield f"there is no {path}: the module greenboost is not loaded"
            case errno.EACCES | errno.EPERM:
                yield f"{path} may not be opened: add the user to the group greenboost"
            case _:
                yield f"{path}: {os.strerror(error.errno or 0)}"
    else:
        with device:
            yield device


def choose(wanted: str, device: Device | str) -> ArenaSource:
    """For the setting `wanted`: "auto", "module" or "memfd". Raises StartupError.

    With "auto" the module's memory has to be as good for io_uring as a memfd's, which is found by trying:
    before Linux 6.5 io_uring registers memory of no file but tmpfs's, and transfers cost more without.
    """
    if isinstance(device, str):
        if wanted == "module":
            raise StartupError(f'arenas are to come from the module, but {device}; or leave that at "auto"')
        return ArenaSource("memfd", device if wanted == "auto" else "asked for")
    if wanted == "memfd":
        return ArenaSource("memfd", "asked for", device=device)
    try:
        refusal = _refusal(device)
    except OSError as error:
        if wanted == "module":
            raise StartupError(f"the module greenboost has no memory: {error.strerror}") from error
        return ArenaSource("memfd", f"the module has no memory: {error.strerror}", device=device)
    if refusal and wanted == "auto":
        return ArenaSource("memfd", refusal, device=device)
    return ArenaSource("module", refusal, lambda _, size: device.allocate(size), device)


@contextmanager
def open_arena_source(wanted: str) -> Iterator[ArenaSource]:
    """choose() with the device that is there, which is closed at the end."""
    with open_device() as device:
        yield choose(wanted, device)


def _refusal(device: Device) -> str:
    """Why io_uring does not register the module's memory; empty if it does. Raises OSError."""
    fd = device.allocate(_PROBE)
    try:
        memory = mmap.mmap(fd, _PROBE)
    finally:
        os.close(fd)
    with memory:
        try:
            with Ring() as ring, memoryview(memory) as view:
                ring.remove_buffer(ring.add_buffer(view))
        except (RingError, MemlockError):
            pass  # whatever arenas are made of
        except OSError as error:
            why = os.strerror(error.errno or 0).lower()
            return f"this kernel's io_uring does not register the module's memory ({why})"
    return ""
