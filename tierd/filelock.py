# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock of an open file (flock), which its last holder may have a little longer than its life."""

from __future__ import annotations

import fcntl
import time

__all__ = ["lock_file"]


def lock_file(fd: int, *, patience: float) -> bool:
    """Have the file locked while it is open; False if somebody still has it after `patience` seconds.

    A daemon that was killed has its locks until the kernel has taken its rings apart, which hold the files
    too. Raises OSError.
    """
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
