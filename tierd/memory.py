# SPDX-License-Identifier: GPL-2.0-or-later
"""How much RAM there is and can be had: the machine's, and what control groups leave of it."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Memory", "available", "control_group", "domains", "machine"]

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

_MEMINFO = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", re.MULTILINE)
# Pages free on a processor's own list.
_LISTED = re.compile(r"^ +count: +(\d+)$", re.MULTILINE)
# What reclaim takes before it swaps. Memfds are not in it: shared memory counts as anonymous.
_RECLAIMABLE = re.compile(r"^(?:active_file|inactive_file|slab_reclaimable) (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Memory:
    """The RAM of the machine, or of a control group with a limit. Bytes."""

    name: str  #: "machine", or the directory of the group
    total: int
    available: int  #: without swapping


def machine(proc: Path = _PROC) -> Memory:
    """The machine's (proc_meminfo(5)).

    What was freed a moment ago is on lists of the processors (/proc/zoneinfo), up to an eighth of memory
    since Linux 6.7, and comes off them at some MiB a second, or before anything is killed. MemAvailable
    leaves it out; were it left out here, an arena just given back would be followed by the next.
    """
    values = dict(_MEMINFO.findall((proc / "meminfo").read_text()))
    try:
        listed = sum(map(int, _LISTED.findall((proc / "zoneinfo").read_text()))) * mmap.PAGESIZE
    except OSError:  # some containers hide it
        listed = 0
    total = int(values["MemTotal"]) << 10
    return Memory("machine", total, min(total, (int(values["MemAvailable"]) << 10) + listed))


def control_group(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Path | None:
    """The directory of this process's control group, if version 2 limits its memory."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("0::/"):
            group = cgroups / line[4:]
            # In the root group there is no such file, and none where version 1 has the memory.
            return group if (group / "memory.current").exists() else None
    return None


def domains(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> list[Memory]:
    """The machine, and every control group around this process that has a limit."""
    return [machine(proc), *_groups(control_group(proc, cgroups), cgroups)]


def available(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes that this process could take without anybody swapping."""
    return min(memory.available for memory in domains(proc, cgroups))


def _groups(group: Path | None, root: Path) -> Iterator[Memory]:
    while group is not None and group != root:
        # Above memory.high everything is slowed down until it is below again.
        limits = [int(text) for name in ("max", "high") if (text := _read(group, name)).isdigit()]
        if limits:
            used = int(_read(group, "current") or 0)
            cache = sum(int(size) for size in _RECLAIMABLE.findall(_read(group, "stat")))
            yield Memory(str(group), min(limits), max(0, min(limits) - used + cache))
        group = group.parent


def _read(group: Path, name: str) -> str:
    try:
        return (group / f"memory.{name}").read_text().strip()
    except OSError:  # the group may be gone, or its parent not ours to see
        return ""
