# SPDX-License-Identifier: GPL-2.0-or-later
"""When a spill path is set aside: from what its device answers to a state. Pure.

                    stalled                     failed
      ACTIVE <------------------> STALLED    ------------> FAILED
         |           moving                (from any state)
         | withdraw / restore
         v
      DRAINING

Only an ACTIVE path is given new chunks. What a path holds can be read in every state. A path that
is DRAINING or FAILED has its chunks moved elsewhere.
"""

from __future__ import annotations

import enum
import errno

__all__ = ["Health", "PathState", "is_ours"]

ERRORS_IN_A_ROW = 3
"""Transfers that fail one after the other before the device, and not an extent, is held to be bad."""

_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN, errno.EROFS})
"""What a device says that is no longer there, or that can no longer be written."""

_OURS = frozenset({errno.EAGAIN, errno.EFAULT, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the kernel says when this machine or program has no means for a transfer: no device was asked."""


def is_ours(error: OSError) -> bool:
    """Whether a transfer failed for want of something that has nothing to do with the device."""
    return error.errno in _OURS


class PathState(enum.StrEnum):
    """What a spill path is good for."""

    ACTIVE = "active"
    STALLED = "stalled"  #: its device has not answered for too long
    FAILED = "failed"  #: its device fails; for good
    DRAINING = "draining"  #: it is to be removed


class Health:
    """One path's state, and the errors that led to it."""

    def __init__(self) -> None:
        self._stalled = False
        self._draining = False
        self._failed = False
        self._writes = 0  # that failed in a row
        self._reads = 0
        self.errors = 0  #: transfers that failed in all

    @property
    def state(self) -> PathState:
        """The gravest that applies."""
        if self._failed:
            return PathState.FAILED
        if self._draining:
            return PathState.DRAINING
        return PathState.STALLED if self._stalled else PathState.ACTIVE

    @property
    def stalled(self) -> bool:
        """Whether the device has not answered for too long, whatever else is wrong with the path."""
        return self._stalled

    @property
    def draining(self) -> bool:
        """Whether it is to be removed, whatever else is wrong with it."""
        return self._draining

    def succeeded(self, *, write: bool) -> None:
        """A transfer went well."""
        if write:
            self._writes = 0
        else:
            self._reads = 0

    def erred(self, error: int | None, *, write: bool) -> None:
        """A transfer failed, after all retries, with this errno.

        Reads and writes are counted apart: a disk whose writes all fail may still be read from well.
        """
        self.errors += 1
        if write:
            self._writes += 1
        else:
            self._reads += 1
        if error in _GONE or max(self._writes, self._reads) >= ERRORS_IN_A_ROW:
            self._failed = True

    def stall(self, stalled: bool) -> None:
        """The device does not answer, or answers again."""
        self._stalled = stalled

    def drain(self, draining: bool) -> None:
        """The path is to be removed, or is to stay after all."""
        self._draining = draining
