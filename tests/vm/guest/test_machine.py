# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest has what tests need, and the project's own ring drives its devices."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from tests.vm.guest.harness import SECTOR, command, mapped, null_blk, sectors
from tierd.nvme.ring import Ring, RingBuffer, RingFile, open_ring

pytestmark = pytest.mark.vm

MIB = 1 << 20


@contextmanager
def opened(device: str) -> Iterator[int]:
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    try:
        yield fd
    finally:
        os.close(fd)


@asynccontextmanager
async def ring_on(device: str, memory: memoryview) -> AsyncIterator[tuple[Ring, RingFile, RingBuffer]]:
    with opened(device) as fd:
        async with open_ring() as ring:
            yield ring, ring.add_file(fd), ring.add_buffer(memory)


@pytest.fixture
def memory() -> Iterator[memoryview]:
    with mmap.mmap(-1, 2 * MIB) as mapping:
        view = memoryview(mapping)
        yield view
        view.release()


def failure(raised: pytest.ExceptionInfo[OSError]) -> int | None:
    return raised.value.errno


def test_the_kernel_is_the_one_asked_for() -> None:
    assert os.uname().release == os.environ["GREENBOOST_VM"]


def test_nvme_devices_stand_in_the_order_they_were_given() -> None:
    assert sectors("/dev/tier0") * SECTOR == 256 * MIB
    assert sectors("/dev/tier1") * SECTOR == 128 * MIB
    assert Path("/dev/tier0").resolve().name.startswith("nvme")


def test_what_is_written_outside_the_checkout_stays_here() -> None:
    Path("/etc/greenboost-vm-was-here").write_text("tests/vm/test_guest.py looks for it on the host")


@pytest.mark.parametrize("device", ["fuse", "loop-control", "mapper/control"])
def test_opening_a_device_loads_its_module(device: str) -> None:
    path = Path("/dev") / device
    assert stat.S_ISCHR(path.stat().st_mode)
    os.close(os.open(path, os.O_RDWR))


@pytest.mark.parametrize("module", ["brd", "loop", "scsi_debug", "ext4", "dm-flakey", "dm-delay", "null_blk"])
def test_modules(module: str) -> None:
    command("modprobe", module, *(["nr_devices=0"] if module == "null_blk" else []))
    assert (Path("/sys/module") / module.replace("-", "_")).exists()


def test_memory_pressure_is_reported() -> None:
    assert "full" in Path("/proc/pressure/memory").read_text()


async def test_ring_on_nvme(memory: memoryview) -> None:
    content = os.urandom(MIB)
    memory[:MIB] = content
    async with ring_on("/dev/tier0", memory) as (ring, file, buffer):
        assert buffer.fixed
        await ring.write(file, buffer, 0, MIB, 5 * MIB)
        await ring.read(file, buffer, MIB, MIB, 5 * MIB)
    assert memory[MIB:] == content


async def test_flakey_fails_writes_only_until_it_is_reloaded(memory: memoryview) -> None:
    with mapped("flakey", "/dev/tier1", "/dev/tier1 0 0 1000 1 error_writes") as device:
        async with ring_on(device.path, memory) as (ring, file, buffer):
            with pytest.raises(OSError) as raised:
                await ring.write(file, buffer, 0, MIB, 0)
            assert failure(raised) == errno.EIO
            await ring.read(file, buffer, 0, MIB, 0)
            device.reload("linear", "/dev/tier1", "/dev/tier1 0")
            await ring.write(file, buffer, 0, MIB, 0)


async def test_delay(memory: memoryview) -> None:
    with mapped("delay", "/dev/tier1", "/dev/tier1 0 300") as device:
        async with ring_on(device.path, memory) as (ring, file, buffer):
            begun = trio.current_time()
            await ring.read(file, buffer, 0, MIB, 0)
            # It counts ticks, and an emulated machine makes up for several at once.
            assert trio.current_time() - begun >= 0.2


async def test_error_target(memory: memoryview) -> None:
    with mapped("error", "/dev/tier1") as device:
        async with ring_on(device.path, memory) as (ring, file, buffer):
            with pytest.raises(OSError) as raised:
                await ring.read(file, buffer, 0, MIB, 0)
            assert failure(raised) == errno.EIO


async def test_null_blk_with_bad_sectors(memory: memoryview) -> None:
    with null_blk(16) as (device, attributes):
        async with ring_on(device, memory) as (ring, file, buffer):
            memory[:MIB] = b"x" * MIB
            await ring.write(file, buffer, 0, MIB, MIB)
            bad = f"{MIB // SECTOR}-{MIB // SECTOR + 7}"
            (attributes / "badblocks").write_text(f"+{bad}")
            with pytest.raises(OSError) as raised:
                await ring.read(file, buffer, MIB, MIB, MIB)
            assert failure(raised) == errno.EIO
            (attributes / "badblocks").write_text(f"-{bad}")
            await ring.read(file, buffer, MIB, MIB, MIB)
            assert memory[MIB:] == b"x" * MIB


async def test_an_nvme_device_that_is_pulled_out_fails_and_takes_nothing_with_it(memory: memoryview) -> None:
    name = os.readlink("/dev/tier2")
    async with ring_on("/dev/tier2", memory) as (ring, file, buffer):
        await ring.write(file, buffer, 0, MIB, 0)
        (Path("/sys/block") / name / "device/device/remove").write_text("1")
        with pytest.raises(OSError):  # EIO or ENODEV, as the kernel has it
            await ring.read(file, buffer, 0, MIB, 0)
