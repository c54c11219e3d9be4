# SPDX-License-Identifier: GPL-2.0-or-later
"""A limit of RAM for a tree of processes, their page cache included, by a control group.

Without it a file that is "read from disk" comes from the page cache, which is all RAM that is left.
Version 2 of control groups where it has the memory controller, else version 1. Both need the right to
make a group, as root has it as a rule.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["RamCap", "RamCapError"]

_PATIENCE = 5.0
"""Seconds for the processes in it to be gone once they have ended."""


class RamCapError(Exception):
    """No limit can be set here; the message says why."""


class RamCap:
    """A group whose processes together have at most `limit` bytes of RAM, and no swap.

    Raises RamCapError.
    """

    def __init__(self, limit: int, *, mounts: Path = Path("/proc/self/mounts")) -> None:
        root, version = _memory_root(mounts)
        self._group = root / f"greenboost-bench-{os.getpid()}"
        self._peak = "memory.peak" if version == 2 else "memory.max_usage_in_bytes"
        try:
            if version == 2:
                _enable(root)
            self._group.mkdir()
        except OSError as error:
            raise RamCapError(f"{root}: {(error.strerror or str(error)).lower()}") from None
        try:
            if version == 2:
                (self._group / "memory.max").write_text(str(limit))
            else:
                (self._group / "memory.limit_in_bytes").write_text(str(limit))
            for name in ("memory.swap.max", "memory.swappiness"):
                with suppress(OSError):  # there is no such file without swap, or in the other version
                    if (self._group / name).exists():
                        (self._group / name).write_text("0")
        except OSError as error:
            self.close()
            raise RamCapError(f"{self._group}: {(error.strerror or str(error)).lower()}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def enter(self, pid: int = 0) -> None:
        """Have process `pid` (0: the caller) and its future children in the group.

        What it has already stays charged where it is.
        """
        (self._group / "cgroup.procs").write_text(str(pid))

    def peak(self) -> int | None:
        """The most RAM that the group had, bytes; None where the kernel does not say."""
        try:
            return int((self._group / self._peak).read_text())
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Remove the group, whose processes have ended. May be repeated."""
        deadline = time.monotonic() + _PATIENCE
        while self._group.is_dir():
            try:
                self._group.rmdir()
            except OSError:
                # The last process is not buried yet, and nothing announces when it is.
                if time.monotonic() > deadline:
                    return
                time.sleep(0.05)


def _memory_root(mounts: Path) -> tuple[Path, int]:
    """Where groups with a memory controller are made, and the version. Raises RamCapError."""
    older: Path | None = None
    for line in mounts.read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        root = Path(point.encode().decode("unicode_escape"))
        if kind == "cgroup2":
            with suppress(OSError):
                if "memory" in (root / "cgroup.controllers").read_text().split():
                    return root, 2
        elif kind == "cgroup" and "memory" in options.split(","):
            older = root
    if older is not None:
        return older, 1
    raise RamCapError("no control groups with a memory controller are mounted")


def _enable(root: Path) -> None:
    """Groups below `root` are to count memory."""
    control = root / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")
