# SPDX-License-Identifier: GPL-2.0-or-later
"""Where news of short RAM come from: the kernel module, or what every Linux says by itself.

A source only ever says how things are now (look()) and when it is worth asking again (wait()). So
events that merge, come in bursts or are lost change nothing: the state is read after each of them, and
at least every second.

The module is heard by its eventfd. Its netlink group says the same, but reaches only the network
namespace that the module was loaded in, drops events when nobody keeps up, and needs a parser.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import trio

from . import memory
from .device import Device
from .model import Pressure
from .watermark import Watcher

__all__ = ["ModuleSource", "Source", "SystemSource", "open_source"]

_log = logging.getLogger(__name__)

_SELDOM = 1.0
"""Seconds between two looks at the module's state when it says nothing."""

_TRIGGER = b"some 100000 2000000\0"
"""Tell when some task has waited for memory for 0.1 s within 2 s. Whoever is not root may only have
windows of whole 2 s."""


class Source(Protocol):
    """Says how short RAM is."""

    @property
    def name(self) -> str:
        """For people and --json."""

    def look(self) -> Pressure:
        """How things are."""

    async def wait(self) -> None:
        """Until it is worth looking again: because of an event, or since some time has gone by."""

    def report_t3(self, total: int, used: int) -> None:
        """T3 has `total` bytes, of which `used` are in use, for whom it matters."""


class ModuleSource:
    """The kernel module's watchdog."""

    name = "module"

    def __init__(self, device: Device) -> None:
        """Raises OSError where the module is one that cannot tell."""
        self._device = device
        self._reported: tuple[int, int] | None = None
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            device.notify(self._eventfd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The device stays the caller's."""
        fd, self._eventfd = self._eventfd, -1
        if fd >= 0:
            os.close(fd)

    def look(self) -> Pressure:
        """See Source."""
        # In this order: what happens between the two is told once more, and never missed.
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        return self._device.pressure()

    async def wait(self) -> None:
        """See Source."""
        with trio.move_on_after(_SELDOM):
            await trio.lowlevel.wait_readable(self._eventfd)

    def report_t3(self, total: int, used: int) -> None:
        """See Source."""
        if self._reported != (total, used):
            self._device.report_t3(total, used)
            self._reported = total, used


class SystemSource:
    """What /proc and the control groups say, and the kernel's pressure stall information, if it has it.

    Stalls are no measure of their own: they bring the next look forward, and double the watermarks for it.
    """

    name = "system"

    def __init__(
        self, reserve: int | None, *, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> None:
        """`reserve`: bytes that should stay available; see Watcher."""
        self._watcher = Watcher(reserve)
        self._proc = proc
        self._cgroups = cgroups
        self._stalled = False
        # An epoll of our own: a trigger says POLLPRI, which trio does not wait for, but an epoll with
        # something in it is readable.
        self._epoll = select.epoll()
        self._triggers: list[int] = []
        try:
            group = memory.control_group(proc, cgroups)
            for file in (proc / "pressure" / "memory", group and group / "memory.pressure"):
                if file is not None:
                    self._arm(file)
        except BaseException:
            self.close()
            raise

    def _arm(self, file: Path) -> None:
        fd = -1
        try:
            fd = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(fd, _TRIGGER)
            self._epoll.register(fd, select.EPOLLPRI)
        except OSError as error:  # a kernel without it, or one that keeps it for root
            _log.debug("%s: %s; memory is looked at all the same", file, error.strerror)
            if fd >= 0:
                os.close(fd)
        else:
            self._triggers.append(fd)

    def close(self) -> None:
        """May be repeated."""
        self._epoll.close()
        while self._triggers:
            os.close(self._triggers.pop())

    def look(self) -> Pressure:
        """See Source."""
        stalls, self._stalled = self._stalled, False
        domains = memory.domains(self._proc, self._cgroups)
        self._watcher = self._watcher.look(domains, stalls=stalls)
        return self._watcher.pressure

    async def wait(self) -> None:
        """See Source."""
        with trio.move_on_after(self._watcher.interval):
            # Polled before it is waited for: a trigger's news go to the first poll, and trio's own when it
            # begins to wait is one. What is lost between the two comes again within 2 s.
            if not self._epoll.poll(0):
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._epoll.poll(0)
            self._stalled = True

    def report_t3(self, total: int, used: int) -> None:
        """See Source: it matters to nobody."""


@contextmanager
def open_source(device: Device | None, reserve: int | None) -> Iterator[Source]:
    """The module, if there is one and it can tell, else the system; `reserve` is the system's."""
    with ExitStack() as undo:
        source: ModuleSource | SystemSource
        try:
            source = SystemSource(reserve) if device is None else ModuleSource(device)
        except OSError as error:
            if device is None:
                raise
            _log.warning("the module cannot tell when RAM is short: %s", error.strerror)
            source = SystemSource(reserve)
        undo.callback(source.close)
        yield source
