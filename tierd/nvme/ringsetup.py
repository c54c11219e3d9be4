# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a ring with what this kernel has, and saying why where it cannot be made."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING

from tierd.model import Poll, format_size

from ._uring import ffi, lib
from .errors import MemlockError, RingError

if TYPE_CHECKING:
    from ._uring import CData

__all__ = ["SETUPS", "buffer_error", "cannot_poll", "new_ring"]

# include/uapi/linux/io_uring.h
IOPOLL = 1 << 0
SQPOLL = 1 << 1
SUBMIT_ALL = 1 << 7
COOP_TASKRUN = 1 << 8
SINGLE_ISSUER = 1 << 12
DEFER_TASKRUN = 1 << 13

SETUPS = (
    SUBMIT_ALL | SINGLE_ISSUER | DEFER_TASKRUN,
    SUBMIT_ALL | SINGLE_ISSUER | COOP_TASKRUN,
    SUBMIT_ALL | COOP_TASKRUN,
    SUBMIT_ALL,
)
"""Setup flags from best to plainest. With DEFER_TASKRUN the kernel handles completions when the
thread asks for them, many at once; with COOP_TASKRUN whenever the thread enters the kernel anyway;
with neither it interrupts the thread for each.
"""

SQ_SETUPS = (SQPOLL | SUBMIT_ALL | SINGLE_ISSUER, SQPOLL | SUBMIT_ALL)
"""The same where a thread of the kernel's submits. DEFER_TASKRUN and COOP_TASKRUN are about the
thread that submits, so they mean nothing here and are refused."""

SQ_IDLE_MS = 50
"""Milliseconds: chunks follow each other faster than that, and a thread that spins costs a core."""

_REFUSALS = {
    errno.EPERM: "this process may not use io_uring; set the sysctl kernel.io_uring_disabled to 0, "
    "and in a container use a seccomp profile that allows io_uring_setup",
    errno.ENOSYS: "the kernel has no io_uring, or the container's seccomp profile hides it; "
    "allow io_uring_setup there",
    errno.EINVAL: "the kernel's io_uring is too old: it lacks sparse tables of registered buffers, "
    "which Linux 5.19 and newer have",
    errno.ENOMEM: "there is no memory for an io_uring ring; raise the limit on locked memory (ulimit -l)",
    errno.EMFILE: "this process has too many open files for an io_uring ring; raise ulimit -n",
}


def new_ring(
    entries: int, piece: int, window: int, buffers: int, files: int, poll: Poll = "none"
) -> tuple[CData, int]:
    """The best ring that the kernel makes, and its setup flags. Raises RingError.

    Found by trying: versions say little about kernels that distributions patch.
    """
    ring = ffi.new("struct gb_ring **")
    error = 0
    for setup in SQ_SETUPS if poll == "sq" else SETUPS:
        flags = setup | IOPOLL if poll == "io" else setup
        options = ffi.new(
            "struct gb_ring_options *", (entries, piece, window, flags, buffers, files, SQ_IDLE_MS)
        )
        error = -lib.gb_ring_new(options, ring)
        if not error:
            return ring[0], flags
        if error != errno.EINVAL:
            break
    if poll == "sq" and error == errno.EPERM:
        raise RingError(
            error, "this process may not have a thread in the kernel that submits; grant CAP_SYS_NICE"
        )
    raise RingError(error, _REFUSALS.get(error, f"io_uring cannot be set up: {os.strerror(error)}"))


def cannot_poll() -> RingError:
    """For a transfer on a ring that polls, with a file that cannot be polled."""
    return RingError(
        errno.EOPNOTSUPP,
        "this file cannot be polled for completions: it has to be opened with O_DIRECT, on a device with "
        "queues for polling, which an NVMe device has with nvme.poll_queues=2 on the kernel's command "
        "line (or in /etc/modprobe.d); or leave polling out",
    )


def buffer_error(error: int, size: int) -> OSError:
    """The exception for memory of `size` bytes that could not be registered."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if error == errno.ENOMEM and limit != resource.RLIM_INFINITY:
        return MemlockError(
            error,
            f"cannot pin {format_size(size)} for io_uring: the limit on locked memory is "
            f"{format_size(limit)}; raise it with 'ulimit -l unlimited', LimitMEMLOCK=infinity in the "
            "systemd unit or 'memlock' in /etc/security/limits.conf, or grant CAP_IPC_LOCK",
        )
    return OSError(error, f"io_uring cannot register {format_size(size)} of memory: {os.strerror(error)}")
