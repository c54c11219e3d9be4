# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel and its settings offer: one function a check."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import re
import resource
import shutil
from pathlib import Path

from .. import memory
from ..arena import HUGE_PAGE, ArenaError, open_pool
from ..arenasource import choose, open_device
from ..device import DEVICE, Device
from ..model import format_size
from .checks import MISSING, OK, WARNING, Check

__all__ = ["machine_checks"]

_SYS_IO_URING_SETUP = 425
_SIZEOF_IO_URING_PARAMS = 120
_CAP_IPC_LOCK = 14
_TRIED = 32 * HUGE_PAGE
_SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def machine_checks() -> list[Check]:
    with open_device() as device:
        module = [_kernel_module(device), _arena_source(device)]
    return [
        *module,
        _io_uring(),
        _io_uring_extension(),
        _fuse(),
        _huge_pages(),
        _memlock(),
        _ram(),
    ]


def _kernel_module(device: Device | str) -> Check:
    if isinstance(device, str):
        status = WARNING if os.path.exists(DEVICE) else MISSING
        return Check(
            "kernel_module",
            status,
            device,
            "RAM arenas are memfds instead, and what memory is short of is seen in /proc, a little later",
        )
    try:
        pressure = device.pressure()
    except OSError as error:
        return Check(
            "kernel_module",
            WARNING,
            f"{DEVICE} does not say when RAM is short ({error.strerror})",
            "it is of another version: build and load kmod/ of this one",
        )
    return Check("kernel_module", OK, f"{DEVICE}, RAM is {pressure.level.name.lower()}")


def _arena_source(device: Device | str) -> Check:
    source = choose("auto", device)
    found = f"{source.name}: {source.why}" if source.why else source.name
    return Check("arena_source", OK, found, details={"source": source.name})


def _io_uring() -> Check:
    parameters = ctypes.create_string_buffer(_SIZEOF_IO_URING_PARAMS)
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(_SYS_IO_URING_SETUP, 8, parameters)
    if ring >= 0:
        os.close(ring)
        return Check("io_uring", OK, "a ring can be set up", needed=True)
    number = ctypes.get_errno()
    disabled = _read(Path("/proc/sys/kernel/io_uring_disabled"))
    if number == errno.ENOSYS:
        advice = "the NVMe tier needs a kernel with CONFIG_IO_URING"
    elif disabled not in (None, "0"):
        advice = f"the NVMe tier needs it: sysctl kernel.io_uring_disabled is {disabled}, set it to 0"
    else:
        advice = "the NVMe tier needs it: a container's seccomp profile may forbid it, allow io_uring_setup"
    return Check("io_uring", MISSING, os.strerror(number).lower(), advice, needed=True)


def _io_uring_extension() -> Check:
    try:
        ring = importlib.import_module("tierd.nvme.ring")
        errors = importlib.import_module("tierd.nvme.errors")
    except ImportError as error:
        return Check(
            "io_uring_extension",
            MISSING,
            str(error),
            "the NVMe tier needs it: install liburing-dev and a C compiler, then 'pip install -e .'",
            needed=True,
        )
    try:
        # The engine asks more of the kernel than a plain ring: sparse tables of files and buffers.
        ring.Ring().close()
    except errors.RingError as error:
        found, _, advice = str(error.strerror).partition("; ")
        return Check("io_uring_extension", MISSING, found, f"the NVMe tier needs it: {advice}", needed=True)
    return Check("io_uring_extension", OK, "built, and the kernel has what it uses", needed=True)


def _fuse() -> Check:
    lacking = []
    if not os.path.exists("/dev/fuse"):
        lacking.append("/dev/fuse (load the fuse module)")
    elif not os.access("/dev/fuse", os.R_OK | os.W_OK):
        lacking.append("permission to open /dev/fuse")
    if shutil.which("fusermount3") is None:
        lacking.append("fusermount3 (package fuse3)")
    try:
        version = importlib.import_module("pyfuse3").__version__
    except ImportError:
        lacking.append("pyfuse3 (package libfuse3-dev, then 'pip install pyfuse3')")
    if lacking:
        return Check("fuse", MISSING, f"no {', no '.join(lacking)}", "the view (--view, mount) needs it")
    return Check("fuse", OK, f"/dev/fuse, fusermount3, pyfuse3 {version}")


def _huge_pages() -> Check:
    """By trying, as what is set does not say whether there are any: see arena.py."""
    chosen = re.search(r"\[(\w+)\]", _read(_SHMEM_ENABLED) or "")
    mode = chosen[1] if chosen else "absent"
    try:
        with open_pool(limit=1, arena_bytes=_TRIED, chunk=_TRIED) as pool:
            huge = _huge_bytes(pool.create(1).address)
    except ArenaError as error:
        return Check("huge_pages", WARNING, str(error), "RAM cannot be had: see ram")
    details = {"shmem_enabled": mode, "tried_bytes": _TRIED, "huge_bytes": huge}
    found = f"{format_size(huge)} of {format_size(_TRIED)} of RAM are in pages of 2 MiB"
    if huge > _TRIED // 2:
        return Check("huge_pages", OK, found, details=details)
    causes = {
        "absent": "this kernel has none for shared memory",
        "deny": f"echo never > {_SHMEM_ENABLED}, which does not forbid them",
    }
    return Check(
        "huge_pages",
        WARNING,
        found,
        "making the others takes 2 times as long, and registering them with the GPU 5 times: "
        + causes.get(mode, "free memory is in pieces, and less of it in use would help"),
        details=details,
    )


def _huge_bytes(address: int) -> int:
    """Of the mapping of this process that begins there, what is mapped in huge pages."""
    _, _, after = (_read(Path("/proc/self/smaps")) or "").partition(f"\n{address:x}-")
    found = re.search(r"^ShmemPmdMapped: +(\d+) kB$", after, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _memlock() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    details = {
        "soft_bytes": None if soft == resource.RLIM_INFINITY else soft,
        "hard_bytes": None if hard == resource.RLIM_INFINITY else hard,
    }
    if soft == resource.RLIM_INFINITY:
        return Check("memlock", OK, "unlimited", details=details)
    if _has_capability(_CAP_IPC_LOCK):
        return Check("memlock", OK, f"{format_size(soft)}, not applied (CAP_IPC_LOCK)", details=details)
    return Check(
        "memlock",
        WARNING,
        format_size(soft),
        "RAM arenas are registered with io_uring up to this limit only: raise it with 'ulimit -l unlimited', "
        "limits.conf or LimitMEMLOCK=infinity",
        details=details,
    )


def _ram() -> Check:
    total, available = memory.machine().total, memory.available()
    found = f"{format_size(available)} available of {format_size(total)}"
    details = {"total_bytes": total, "available_bytes": available}
    if available < 1 << 30:
        return Check(
            "ram", WARNING, found, "the RAM tier will be small: give --ram a size below this", details=details
        )
    return Check("ram", OK, found, details=details)


def _has_capability(number: int) -> bool:
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> number & 1)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
