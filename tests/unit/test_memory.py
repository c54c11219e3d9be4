# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory there is: on directories that look like /proc and /sys/fs/cgroup."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from tierd import memory
from tierd.memory import Memory

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\nBuffers: 1 kB\n"
    )
    (proc / "self" / "cgroup").write_text("4:memory:/elsewhere\n0::/service/daemon\n")
    return proc


def group(directory: Path, **files: str | int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / f"memory.{name}").write_text(f"{content}\n")
    return directory


def test_the_machines_own() -> None:
    machine = memory.machine()
    # Read one after the other, what is available may be more or less by then.
    assert 0 < memory.available() < machine.total
    assert 0 < machine.available < machine.total


def test_what_processors_have_on_lists_is_available(proc: Path) -> None:
    (proc / "zoneinfo").write_text(
        "Node 0, zone   Normal\n  pages free     77\n  pagesets\n    cpu: 0\n"
        "              count:    1000\n              high:     5000\n    cpu: 1\n"
        "              count:    24\n  vm stats threshold: 36\n"
    )
    assert memory.machine(proc) == Memory("machine", 16 * GIB, 8 * GIB + 1024 * mmap.PAGESIZE)


def test_without_a_limit_the_machine_is_all(proc: Path, tmp_path: Path) -> None:
    cgroups = tmp_path / "cgroup"
    assert memory.domains(proc, cgroups) == [Memory("machine", 16 * GIB, 8 * GIB)]
    assert memory.control_group(proc, cgroups) is None
    group(cgroups / "service" / "daemon", max="max", high="max", current=5)
    group(cgroups / "service", max="max", high="max", current=5)
    assert memory.control_group(proc, cgroups) == cgroups / "service" / "daemon"
    assert memory.domains(proc, cgroups) == [Memory("machine", 16 * GIB, 8 * GIB)]


def test_limits_above_this_group_count_and_cache_is_available(proc: Path, tmp_path: Path) -> None:
    cgroups = tmp_path / "cgroup"
    stat = f"anon 1\ninactive_anon 7\ninactive_file {30 * MIB}\nactive_file {20 * MIB}\nslab_reclaimable 0\n"
    inner = group(cgroups / "service" / "daemon", max=GIB, high=GIB // 2, current=400 * MIB, stat=stat)
    outer = group(cgroups / "service", max=2 * GIB, high="max", current=3 * GIB, stat="")
    assert memory.domains(proc, cgroups)[1:] == [
        Memory(str(inner), 512 * MIB, 162 * MIB),
        Memory(str(outer), 2 * GIB, 0),
    ]
    assert memory.available(proc, cgroups) == 0


def test_a_system_without_control_groups(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").unlink()
    assert memory.available(proc, tmp_path) == 8 * GIB
    (proc / "self" / "cgroup").write_text("0::/\n")
    assert memory.control_group(proc, tmp_path) is None
