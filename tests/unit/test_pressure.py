# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources of pressure: files that look like /proc, the kernel's real ones, and a stand-in for the module."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from tierd.device import Device
from tierd.model import Pressure, PressureLevel
from tierd.pressure import ModuleSource, SystemSource, open_source

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

MIB = 1 << 20
CALM, LOW, CRITICAL = PressureLevel


class Machine:
    """A /proc in which memory comes and goes."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text("0::/\n")
        self.available(8192)

    def available(self, mib: int) -> None:
        (self.proc / "meminfo").write_text(f"MemTotal: 16777216 kB\nMemAvailable: {mib << 10} kB\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "proc")


@pytest.fixture
def source(machine: Machine) -> Iterator[SystemSource]:
    source = SystemSource(1024 * MIB, proc=machine.proc, cgroups=machine.proc)
    yield source
    source.close()


def test_the_system_is_looked_at(machine: Machine, source: SystemSource) -> None:
    assert source.look() == Pressure(CALM, 0, 8192 * MIB, 1536 * MIB, 0)
    machine.available(1000)
    assert source.look() == Pressure(LOW, 536 * MIB, 1000 * MIB, 1536 * MIB, 1)
    machine.available(500)
    assert source.look().level is CRITICAL
    machine.available(1500)
    assert source.look() == Pressure(LOW, 36 * MIB, 1500 * MIB, 1536 * MIB, 3)
    machine.available(1536)
    assert source.look() == Pressure(CALM, 0, 1536 * MIB, 1536 * MIB, 4)


async def test_the_system_is_looked_at_more_often_near_a_watermark(
    machine: Machine, source: SystemSource, autojump_clock: trio.testing.MockClock
) -> None:
    waited = []
    for available in (8192, 1536, 1030, 100):
        machine.available(available)
        source.look()
        began = trio.current_time()
        await source.wait()
        waited.append(trio.current_time() - began)
    assert waited == pytest.approx([1, 0.125, 0.02, 0.02])


async def test_a_stall_brings_the_next_look_forward(machine: Machine, source: SystemSource) -> None:
    # A socket with urgent data is what a trigger looks like to poll().
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as kernel, listener.accept()[0] as trigger:
            source._epoll.register(trigger, 2)  # EPOLLPRI
            machine.available(2000)
            assert source.look().level is CALM
            with trio.fail_after(60):
                kernel.send(b"!", socket.MSG_OOB)
                await source.wait()
            assert source.look().level is LOW
            source._epoll.unregister(trigger)
    assert source.look().level is CALM


async def test_the_kernels_own_files() -> None:
    with open_source(None, None) as source:
        assert source.name == "system"
        assert source.look().available > 0
        with trio.fail_after(60):
            await source.wait()
        source.report_t3(5, 3)


def test_a_system_that_has_no_stall_information(machine: Machine) -> None:
    (machine.proc / "pressure").mkdir()
    (machine.proc / "pressure" / "memory").mkdir()
    source = SystemSource(None, proc=machine.proc, cgroups=machine.proc)
    assert source.look().level is CALM
    source.close()
    source.close()


class FakeDevice:
    """What the module does, as far as its user can see."""

    def __init__(self) -> None:
        self.state = Pressure(CALM, 0, 4096 * MIB, 100 * MIB, 0)
        self.reports: list[tuple[int, int]] = []
        self.eventfd = -1
        self.refuses = 0

    def notify(self, eventfd: int) -> None:
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.eventfd = eventfd

    def pressure(self) -> Pressure:
        return self.state

    def report_t3(self, total: int, used: int) -> None:
        self.reports.append((total, used))


async def test_the_module_is_heard_and_bursts_merge(autojump_clock: trio.testing.MockClock) -> None:
    device = FakeDevice()
    with open_source(cast(Device, device), None) as source:
        assert source.name == "module"
        assert isinstance(source, ModuleSource)
        for number in range(10_000):
            device.state = Pressure(LOW, number, 4096 * MIB, 100 * MIB, number)
            os.eventfd_write(device.eventfd, 1)
        await source.wait()
        assert trio.current_time() == 0
        assert source.look().events == 9999
        # Said and read: nothing more to hear, and it is looked at all the same.
        await source.wait()
        assert trio.current_time() == 1


def test_the_module_is_told_of_t3_when_it_changes() -> None:
    device = FakeDevice()
    with open_source(cast(Device, device), None) as source:
        for used in (0, 0, 5, 5, 0):
            source.report_t3(10, used)
    assert device.reports == [(10, 0), (10, 5), (10, 0)]


def test_a_module_that_cannot_tell(caplog: pytest.LogCaptureFixture) -> None:
    device: Any = FakeDevice()
    device.refuses = errno.ENOTTY
    with open_source(device, None) as source:
        assert source.name == "system"
    assert "cannot tell when RAM is short" in caplog.text
