# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the memory comes from and where it goes: the pool, fragmentation, cgroups, leaks, transfers."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm.guest.kmod.device import (
    DEVICE,
    MIB,
    PARAMETERS,
    allocate,
    attribute,
    buffer,
    empty_pool,
    every_other_free,
    free_memory,
    insert_module,
    mapped,
    meminfo,
    modules,
    populate,
    remove_module,
    set_parameter,
    torn_memory,
    wait_until_unused,
)
from tierd.nvme.ring import open_ring

pytestmark = pytest.mark.vm

PAGE = 4096
CGROUPS = Path("/sys/fs/cgroup")


def in_python(code: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Another process, with what is in device.py; `prefix` is a command that runs it."""
    header = "import mmap, os\nfrom tests.vm.guest.kmod.device import *\n"
    return subprocess.run([*prefix, sys.executable, "-c", header + code], capture_output=True, text=True)


def test_what_is_idle_is_counted_as_available_and_goes_when_asked() -> None:
    empty_pool()
    available, reclaimable = meminfo("MemAvailable"), meminfo("KReclaimable")
    with buffer(200 * MIB) as (_, huge):
        assert huge == 200 * MIB
        assert meminfo("MemAvailable") < available - 150 * MIB
    wait_until_unused()
    assert attribute("pool_bytes") == 200 * MIB
    assert meminfo("KReclaimable") > reclaimable + 190 * MIB
    # Not all of it: the kernel takes off what reclaim might leave, up to half or a watermark.
    assert meminfo("MemAvailable") > available - 100 * MIB
    # The next buffer takes them, ...
    with buffer(150 * MIB):
        assert attribute("pool_bytes") == 50 * MIB
    wait_until_unused()
    # ... and the shrinker gives them back.
    empty_pool()
    assert abs(meminfo("KReclaimable") - reclaimable) < 10 * MIB


def test_the_pool_stays_below_its_limit_also_when_that_is_lowered() -> None:
    before = int((PARAMETERS / "pool_mib").read_text())
    try:
        set_parameter("pool_mib", 32)
        with buffer(64 * MIB), buffer(64 * MIB):
            pass
        wait_until_unused()
        assert attribute("pool_bytes") == attribute("pool_limit_bytes") == 32 * MIB
        set_parameter("pool_mib", 5)
        assert attribute("pool_bytes") == 4 * MIB
        set_parameter("pool_mib", 0)
        assert attribute("pool_bytes") == 0
        with buffer(64 * MIB):
            pass
        wait_until_unused()
        assert attribute("pool_bytes") == 0
    finally:
        set_parameter("pool_mib", before)


def test_under_pressure_the_pool_goes_first() -> None:
    with buffer(400 * MIB):
        pass
    wait_until_unused()
    assert attribute("pool_bytes") == 400 * MIB
    # As much as there is without the pool, and half of that in addition.
    size = (meminfo("MemFree") + 200 * MIB) // PAGE * PAGE
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE) as memory:
        populate(memory)
        assert attribute("pool_bytes") < 300 * MIB


def test_in_torn_memory_a_buffer_is_complete_and_huge_where_it_can_be() -> None:
    empty_pool()
    free = meminfo("MemFree")
    size = 900 * MIB
    with torn_memory(free - 300 * MIB), mapped(size) as (memory, huge):
        print(f"{huge / size:.0%} in pages of 2 MiB")
        assert 0 < huge < size
        zeroes = bytes(MIB)
        assert all(memory[offset : offset + MIB] == zeroes for offset in range(0, size, MIB))
        for offset in range(0, size, PAGE):
            memory[offset] = offset // PAGE % 251
        assert all(memory[offset] == offset // PAGE % 251 for offset in range(0, size, PAGE))
    wait_until_unused()


def test_every_other_page_free_is_what_compaction_puts_right() -> None:
    empty_pool()
    with every_other_free(meminfo("MemFree") - 200 * MIB), buffer(400 * MIB) as (_, huge):
        print(f"{huge / (400 * MIB):.0%} in pages of 2 MiB")
        assert huge > 0
    wait_until_unused()


@contextmanager
def cgroup(name: str, limit: int) -> Iterator[Path]:
    (CGROUPS / "cgroup.subtree_control").write_text("+memory")
    group = CGROUPS / name
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(limit))
        yield group
    finally:
        # Its processes are gone a moment after they were waited for.
        for _ in range(1000):
            try:
                group.rmdir()
                break
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(0.01)


def within(group: Path, code: str) -> subprocess.CompletedProcess[str]:
    script = f'echo $$ >{group}/cgroup.procs && exec "$@"'
    return in_python(code, "sh", "-c", script, "sh")


def event(group: Path, name: str) -> int:
    lines = (group / "memory.events").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == name)


def test_buffers_are_charged_to_the_cgroup_and_bounded_by_it() -> None:
    with cgroup("bounded", 200 * MIB) as group:
        code = f"""
def current():
    return int(open("{group}/memory.current").read())
before = current()
with buffer({100 * MIB + 20 * PAGE}):
    assert current() > before + {99 * MIB}, (before, current())
    try:
        with buffer({150 * MIB}):
            raise SystemExit("more than the cgroup may have")
    except OSError as error:
        assert error.errno == 12, error
"""
        done = within(group, code)
        assert done.returncode == 0, done.stderr
        assert event(group, "oom_kill") == 0
        wait_until_unused()


def test_idle_pages_are_the_cgroups_that_pays_for_them() -> None:
    empty_pool()
    with cgroup("payer", 256 * MIB) as group:
        done = within(group, f"with buffer({100 * MIB}): pass")
        assert done.returncode == 0, done.stderr
        wait_until_unused()
        assert attribute("pool_bytes") == 100 * MIB
        assert int((group / "memory.current").read_text()) >= 100 * MIB
        # Another cgroup does not get them, ...
        with buffer(50 * MIB):
            assert attribute("pool_bytes") == 100 * MIB
        wait_until_unused()
        assert attribute("pool_bytes") == 150 * MIB
        # ... this one does, ...
        done = within(group, f"with buffer({60 * MIB}): print(attribute('pool_bytes'))")
        assert int(done.stdout) == 90 * MIB, done.stderr
        wait_until_unused()
        # ... and when it needs the memory, its own idle pages go, and no others.
        code = f"""
memory = mmap.mmap(-1, {220 * MIB}, mmap.MAP_PRIVATE)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for offset in range(0, {220 * MIB}, 4096):
    memory[offset] = 1
print(attribute("pool_bytes"))
"""
        done = within(group, code)
        assert done.returncode == 0, done.stderr
        assert event(group, "oom_kill") == 0
        assert 50 * MIB <= int(done.stdout) < 100 * MIB
    # What is left of it is its parent's now.
    empty_pool()


async def test_the_ring_transfers_between_a_buffer_and_nvme() -> None:
    size = 32 * MIB
    content = os.urandom(8 * MIB)
    device = os.open("/dev/tier0", os.O_RDWR | os.O_DIRECT)
    with mapped(size) as (mapping, _), memoryview(mapping) as memory:
        memory[: len(content)] = content
        async with open_ring() as ring:
            # Kernels before 6.5 register no memory of files but tmpfs's.
            fixed = not os.environ["GREENBOOST_VM"].startswith("6.1.")
            if not fixed:
                with pytest.raises(OSError) as raised:
                    ring.add_buffer(memory)
                assert raised.value.errno == errno.EOPNOTSUPP
            file, arena = ring.add_file(device), ring.add_buffer(memory, fixed=fixed)
            assert arena.fixed == fixed
            await ring.write(file, arena, 0, len(content), 3 * MIB)
            await ring.read(file, arena, 13 * MIB, len(content), 3 * MIB)
            assert memory[13 * MIB : 21 * MIB] == content
            ring.remove_buffer(arena)
    os.close(device)
    wait_until_unused()


def test_nothing_is_lost() -> None:
    empty_pool()
    device = os.open(DEVICE, os.O_RDWR)
    for _ in range(3):  # whatever is only allocated once
        os.close(allocate(device, 64 * MIB)[0])
    empty_pool()
    before = free_memory(), meminfo("SUnreclaim")
    for number in range(200):
        fd, _ = allocate(device, (number % 16 + 1) * MIB + number % 7 * PAGE)
        with mmap.mmap(fd, MIB) as memory:
            memory[0] = 1
        os.close(fd)
    os.close(device)
    wait_until_unused()
    empty_pool()
    assert free_memory() > before[0] - 24 * MIB
    assert meminfo("SUnreclaim") < before[1] + 4 * MIB


def test_the_module_goes_and_takes_all_it_had_along() -> None:
    with buffer(64 * MIB):
        pass
    wait_until_unused()
    assert attribute("pool_bytes") >= 64 * MIB
    free, reclaimable = free_memory(), meminfo("KReclaimable")
    remove_module("greenboost")
    try:
        assert not Path(DEVICE).exists()
        assert "greenboost_page" not in Path("/proc/slabinfo").read_text()
        assert free_memory() > free + 40 * MIB
        assert meminfo("KReclaimable") < reclaimable - 40 * MIB
    finally:
        insert_module(modules()[0])
    assert Path(DEVICE).exists()
