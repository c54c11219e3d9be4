# SPDX-License-Identifier: GPL-2.0-or-later
"""The module's device: what kmod/uapi/greenboost.h declares, as calls."""

from __future__ import annotations

import fcntl
import os
import struct
from types import TracebackType
from typing import Self

from .model import Pressure, PressureLevel

__all__ = ["DEVICE", "Device"]

DEVICE = "/dev/greenboost"

_ALLOC = struct.Struct("=QIIQiI")
_EVENTFD = struct.Struct("=iI")
_STATE = struct.Struct("=11Q4I")
_T3 = struct.Struct("=QQII")


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0xE7 << 8 | number


IOC_ALLOC = _request(3, 0x00, _ALLOC.size)
IOC_EVENTFD = _request(1, 0x02, _EVENTFD.size)
IOC_STATE = _request(2, 0x03, _STATE.size)
IOC_T3 = _request(1, 0x04, _T3.size)


class Device:
    """The device, open. A context manager; every call raises OSError."""

    def __init__(self, path: str = DEVICE) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """What was allocated stays its owners'. May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def allocate(self, size: int) -> int:
        """A DMA-BUF of `size` bytes of zeros, whole pages; the descriptor is the caller's.

        Takes as long as zeroing does: for a worker thread.
        """
        answer = fcntl.ioctl(self._fd, IOC_ALLOC, _ALLOC.pack(size, 0, 0, 0, 0, 0))
        fd: int = _ALLOC.unpack(answer)[4]
        return fd

    def notify(self, eventfd: int) -> None:
        """From now on `eventfd` counts events, until the device is closed.

        While RAM is short that is at least one a second. Ask for the state afterwards.
        """
        fcntl.ioctl(self._fd, IOC_EVENTFD, _EVENTFD.pack(eventfd, 0))

    def pressure(self) -> Pressure:
        """How short RAM is."""
        values = _STATE.unpack(fcntl.ioctl(self._fd, IOC_STATE, bytes(_STATE.size)))
        events, _, wanted, available, _, _, high = values[:7]
        return Pressure(PressureLevel(values[11]), wanted, available, high, events)

    def report_t3(self, total: int, used: int) -> None:
        """How large T3 is and how full, bytes: the module counts on it when it asks for RAM."""
        fcntl.ioctl(self._fd, IOC_T3, _T3.pack(total, used, 0, 0))
