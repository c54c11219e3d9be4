# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong in the NVMe tier. Every message says what to do about it."""

from __future__ import annotations

__all__ = ["ExtentError", "MemlockError", "NoSpace", "RingError", "SpillPathError", "SpillWriteError"]


class SpillPathError(Exception):
    """A spill path cannot be used; the message names it, what is wrong with it and what to do."""

    def __init__(self, path: str, wrong: str, remedy: str) -> None:
        super().__init__(f"spill path {path}: {wrong}; {remedy}")
        self.path = path


class RingError(OSError):
    """This process may not use io_uring, or the kernel's io_uring is too old; errno is its refusal."""


class MemlockError(OSError):
    """The limit on locked memory is too low to register a buffer; errno is ENOMEM."""


class NoSpace(Exception):
    """No extent is free."""


class ExtentError(ValueError):
    """An extent is used by somebody who does not own it: it was given back, or never taken."""


class SpillWriteError(OSError):
    """A write failed and its extent is retired; errno is the device's. The data is still in RAM."""
