# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of the software device that are not mapped: touching one ends the process, with a reason."""

from __future__ import annotations

import ctypes
import faulthandler
import re
import signal
from ctypes import c_uint32, c_uint64
from pathlib import Path

from .softcuda.driver import ILLEGAL_ADDRESS, READ, UNIT, Driver
from .softcuda.harness import Body, Gate, run


def dies(library: Path, body: Body, what: str) -> str:
    """Runs a body that must die by SIGSEGV after a line about `what`; what else it said."""
    ended = run(library, body, {})
    assert ended.status == -signal.SIGSEGV, ended.stderr
    first, _, rest = ended.stderr.partition("\n")
    assert re.fullmatch(rf"softcuda: {what} touched 0x[0-9a-f]+, which is not mapped", first)
    return rest


def fill(driver: Driver, address: int, stream: int = 0) -> None:
    driver.launch(driver.function("fill_u32"), c_uint64(address), c_uint64(1), c_uint32(1), stream=stream)


def touch_reserved(driver: Driver) -> None:
    fill(driver, driver.reserve(UNIT))
    driver.sync()


def test_a_kernel_that_touches_a_reserved_address_is_named(softcuda: Path) -> None:
    assert dies(softcuda, touch_reserved, "kernel fill_u32") == ""


def touch_unmapped(driver: Driver) -> None:
    address = driver.reserve(2 * UNIT)
    for offset in (0, UNIT):
        driver.map(address + offset, driver.create())
    fill(driver, address + UNIT)
    driver.sync()
    driver("cuMemUnmap", address, UNIT)
    fill(driver, address + UNIT)
    driver.sync()
    fill(driver, address)
    driver.sync()


def test_unmapped_memory_faults_and_its_neighbour_does_not(softcuda: Path) -> None:
    dies(softcuda, touch_unmapped, "kernel fill_u32")


def touch_without_access(driver: Driver) -> None:
    address = driver.reserve(UNIT)
    driver("cuMemMap", address, UNIT, 0, driver.create(), 0)
    fill(driver, address)
    driver.sync()


def test_mapped_memory_without_access_faults(softcuda: Path) -> None:
    dies(softcuda, touch_without_access, "kernel fill_u32")


def write_read_only(driver: Driver) -> None:
    address = driver.reserve(UNIT)
    driver.map(address, driver.create(), flags=READ)
    assert len(driver.read(address, 100)) == 100
    fill(driver, address)
    driver.sync()


def test_read_only_memory_faults_when_written(softcuda: Path) -> None:
    dies(softcuda, write_read_only, "kernel fill_u32")


def touch_freed(driver: Driver) -> None:
    address = driver.alloc(UNIT)
    driver("cuMemFree_v2", address)
    fill(driver, address)
    driver.sync()


def test_freed_memory_faults(softcuda: Path) -> None:
    dies(softcuda, touch_freed, "kernel fill_u32")


def python_kernel(driver: Driver) -> None:
    address = driver.reserve(UNIT)
    kernel = driver.register("python_kernel", lambda params: ctypes.memset(address, 0, 1))
    driver.launch(kernel)
    driver.sync()


def test_a_kernel_in_python_is_named_too(softcuda: Path) -> None:
    dies(softcuda, python_kernel, "kernel python_kernel")


def pull_away(driver: Driver, address: int, gate: Gate, stream: int) -> None:
    driver("cuMemUnmap", address, UNIT)
    gate.open()
    driver.sync(stream)


def copy_while_unmapped(driver: Driver) -> None:
    address, gate, stream = driver.reserve(UNIT), Gate(driver), driver.stream()
    driver.map(address, driver.create())
    driver.launch(gate.function, stream=stream)
    driver("cuMemcpyHtoDAsync_v2", address, b"data", 4, stream)
    pull_away(driver, address, gate, stream)


def test_a_copy_whose_target_went_away_is_named(softcuda: Path) -> None:
    dies(softcuda, copy_while_unmapped, "a copy")


def memset_while_unmapped(driver: Driver) -> None:
    address, gate, stream = driver.reserve(UNIT), Gate(driver), driver.stream()
    driver.map(address, driver.create())
    driver.launch(gate.function, stream=stream)
    driver("cuMemsetD32Async", address, 0, 4, stream)
    pull_away(driver, address, gate, stream)


def test_a_memset_whose_target_went_away_is_named(softcuda: Path) -> None:
    dies(softcuda, memset_while_unmapped, "a memset")


def handled(library: str) -> None:
    faulthandler.enable()
    touch_reserved(Driver(library))


def test_a_handler_that_was_there_before_has_its_say(softcuda: Path) -> None:
    assert "Fatal Python error: Segmentation fault" in dies(softcuda, handled, "kernel fill_u32")


def fault_of_the_host(driver: Driver) -> None:
    ctypes.memset(driver.reserve(UNIT), 0, 1)


def test_a_fault_outside_the_device_is_not_spoken_for(softcuda: Path) -> None:
    ended = run(softcuda, fault_of_the_host, {})
    assert (ended.status, ended.stderr) == (-signal.SIGSEGV, "")


def spoil(driver: Driver) -> None:
    address, good = driver.reserve(UNIT), driver.alloc(UNIT)
    event, stream, gate = driver.event(), driver.stream(), Gate(driver)
    driver.launch(gate.function, stream=stream)
    fill(driver, address, stream)
    driver("cuEventRecord", event, stream)
    gate.open()  # from here on any call may say so
    assert driver.result("cuStreamSynchronize", stream) == ILLEGAL_ADDRESS
    for call in (("cuCtxSynchronize",), ("cuEventQuery", event), ("cuMemFree_v2", good)):
        assert driver.result(*call) == ILLEGAL_ADDRESS


def test_a_fault_spoils_the_context_where_that_is_asked_for(softcuda: Path) -> None:
    ended = run(softcuda, spoil, {"SPOIL": "1"})
    assert ended.status == 0, ended.stderr
    assert re.fullmatch(r"softcuda: kernel fill_u32 touched 0x[0-9a-f]+, which is not mapped\n", ended.stderr)
