# SPDX-License-Identifier: GPL-2.0-or-later
"""The software device's beginning: names, versions, settings, devices and contexts."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path

from .softcuda.driver import (
    CONTEXT_IS_DESTROYED,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_HANDLE,
    INVALID_VALUE,
    MIB,
    NO_DEVICE,
    NOT_FOUND,
    NOT_INITIALIZED,
    NOT_SUPPORTED,
    Driver,
)
from .softcuda.harness import Gate, on_device, run

SOFTCUDA = Path(__file__).parents[2] / "tools" / "softcuda"


@on_device()
def test_calls_before_the_start_are_refused(library: str) -> None:
    driver = Driver(library, init=False)
    assert driver.result("cuDeviceGetCount", byref(c_int())) == NOT_INITIALIZED
    assert driver.result("cuMemAlloc_v2", byref(c_uint64()), 4) == NOT_INITIALIZED
    assert driver.out(c_int, "cuDriverGetVersion") == 13000
    assert driver.result("cuInit", 1) == INVALID_VALUE
    driver("cuInit", 0)
    driver("cuInit", 0)
    assert driver.result("cuMemAlloc_v2", byref(c_uint64()), 4) == INVALID_CONTEXT
    assert driver.result("cuStreamSynchronize", 0) == INVALID_CONTEXT


def test_every_name_is_exported(softcuda: Path) -> None:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", softcuda], check=True, capture_output=True, text=True
    ).stdout
    exported = sorted(line.split()[2] for line in listing.splitlines())
    assert exported == sorted([*(SOFTCUDA / "names.txt").read_text().split(), "softcudaRegisterKernel"])


def test_the_library_is_what_programs_look_for(softcuda: Path) -> None:
    dynamic = subprocess.run(["readelf", "-d", softcuda], check=True, capture_output=True, text=True).stdout
    assert "Library soname: [libcuda.so.1]" in dynamic


def call_what_is_missing(driver: Driver) -> None:
    for _ in range(3):
        assert driver.result("cuSurfObjectCreate", 1, 2, 3, 4) == NOT_SUPPORTED
    assert driver.result("cuProfilerStart") == NOT_SUPPORTED


def test_what_is_missing_says_its_name_once(softcuda: Path) -> None:
    ended = run(softcuda, call_what_is_missing, {})
    assert ended.status == 0
    assert ended.stderr.splitlines() == [
        "softcuda: cuSurfObjectCreate is not supported",
        "softcuda: cuProfilerStart is not supported",
    ]


DEFAULT, LEGACY_STREAM, PER_THREAD = 0, 1, 2


@on_device()
def test_looked_up_functions_are_the_exported_ones(library: str) -> None:
    driver = Driver(library, init=False)

    def found(symbol: str, version: int, flags: int = DEFAULT) -> tuple[int, int, int]:
        function, status = c_void_p(), c_int(-1)
        result = driver.result(
            "cuGetProcAddress_v2", symbol.encode(), byref(function), version, flags, byref(status)
        )
        return result, status.value, function.value or 0

    def exported(name: str) -> tuple[int, int, int]:
        return 0, 0, ctypes.cast(driver.library[name], c_void_p).value or 0

    for symbol, version, flags, name in (
        ("cuMemAlloc", 13000, DEFAULT, "cuMemAlloc_v2"),
        ("cuMemAlloc", 3020, DEFAULT, "cuMemAlloc_v2"),
        ("cuMemAlloc", 3010, DEFAULT, "cuMemAlloc"),
        ("cuMemAlloc", 13000, PER_THREAD, "cuMemAlloc_v2"),
        ("cuMemcpyHtoD", 13000, DEFAULT, "cuMemcpyHtoD_v2"),
        ("cuMemcpyHtoD", 13000, LEGACY_STREAM, "cuMemcpyHtoD_v2"),
        ("cuMemcpyHtoD", 13000, PER_THREAD, "cuMemcpyHtoD_v2_ptds"),
        ("cuMemcpyHtoD", 6050, PER_THREAD, "cuMemcpyHtoD_v2"),
        ("cuLaunchKernel", 13000, PER_THREAD, "cuLaunchKernel_ptsz"),
        ("cuStreamBeginCapture", 10000, DEFAULT, "cuStreamBeginCapture"),
        ("cuStreamBeginCapture", 13000, PER_THREAD, "cuStreamBeginCapture_v2_ptsz"),
        ("cuCtxCreate", 12000, DEFAULT, "cuCtxCreate_v3"),
        ("cuGraphInstantiate", 13000, DEFAULT, "cuGraphInstantiateWithFlags"),
        ("cuGetProcAddress", 11030, DEFAULT, "cuGetProcAddress"),
        ("cuGetProcAddress", 12000, DEFAULT, "cuGetProcAddress_v2"),
        ("cuSurfObjectCreate", 13000, DEFAULT, "cuSurfObjectCreate"),
    ):
        assert found(symbol, version, flags) == exported(name), (symbol, version, flags)
    assert found("cuNobody", 13000) == (0, 1, 0)
    assert found("cuMemcpyBatchAsync", 11000) == (0, 2, 0)
    assert found("cuMemAlloc", 99000)[0] == found("cuMemAlloc", 13000, 3)[0] == INVALID_VALUE
    function = c_void_p()
    assert driver.result("cuGetProcAddress", b"cuNobody", byref(function), 13000, 0) == NOT_FOUND
    driver("cuGetProcAddress", b"cuInit", byref(function), 13000, 0)
    assert function.value == exported("cuInit")[2]


@on_device()
def test_errors_have_names_and_texts(library: str) -> None:
    driver, text = Driver(library, init=False), c_char_p()
    driver("cuGetErrorName", 2, byref(text))
    assert text.value == b"CUDA_ERROR_OUT_OF_MEMORY"
    driver("cuGetErrorString", 2, byref(text))
    assert text.value == b"out of memory"
    driver("cuGetErrorName", 0, byref(text))
    assert text.value == b"CUDA_SUCCESS"
    assert driver.result("cuGetErrorName", 12345, byref(text)) == INVALID_VALUE
    assert text.value is None


@on_device(DEVICES="3", VRAM="64MiB")
def test_devices_tell_what_they_are(driver: Driver) -> None:
    assert driver.out(c_int, "cuDeviceGetCount") == 3
    name, uuids, buses = ctypes.create_string_buffer(64), set(), set()
    for device in range(3):
        assert driver.out(c_int, "cuDeviceGet", device) == device
        driver("cuDeviceGetName", name, 64, device)
        assert name.value == b"softcuda software device %d" % device
        uuid = ctypes.create_string_buffer(16)
        driver("cuDeviceGetUuid_v2", uuid, device)
        uuids.add(uuid.raw)
        bus = ctypes.create_string_buffer(16)
        driver("cuDeviceGetPCIBusId", bus, 16, device)
        buses.add(bus.value)
        assert driver.out(c_int, "cuDeviceGetByPCIBusId", bus.value) == device
        assert driver.out(c_int, "cuDeviceGetAttribute", 102, device) == 1  # virtual memory management
        assert driver.out(c_int, "cuDeviceGetAttribute", 83, device) == 0  # managed memory
        assert driver.out(c_int, "cuDeviceGetAttribute", 16, device) == os.cpu_count()
        assert driver.out(c_size_t, "cuDeviceTotalMem_v2", device) == 64 * MIB
    assert len(uuids) == len(buses) == 3
    assert driver.result("cuDeviceGet", byref(c_int()), 3) == INVALID_DEVICE
    assert driver.result("cuDeviceGetAttribute", byref(c_int()), 102, -1) == INVALID_DEVICE
    assert driver.result("cuDeviceGetAttribute", byref(c_int()), 9999, 0) == INVALID_VALUE
    assert driver.result("cuDeviceGetByPCIBusId", byref(c_int()), b"0000:44:00.0") == INVALID_DEVICE


def start(library: str) -> None:
    driver = Driver(library, init=False)
    os._exit(driver.result("cuInit", 0))


def test_settings_that_cannot_be_understood_are_named(softcuda: Path) -> None:
    for name, value in (
        ("VRAM", "lots"),
        ("VRAM", "1MiB"),
        ("VRAM", "-4GiB"),
        ("VRAM", "99999999TiB"),
        ("DEVICES", "17"),
        ("LATE", "yes"),
        ("POISON", "2"),
        ("LATE_MS", "0"),
    ):
        ended = run(softcuda, start, {name: value})
        assert ended.status == INVALID_VALUE
        assert ended.stderr.startswith(f"softcuda: SOFTCUDA_{name}={value}: write a ")
        assert ended.stderr.count("\n") == 1


def test_sizes_have_units_or_none(softcuda: Path) -> None:
    for value in ("67108864", "65536KiB", "64MiB", "64mib", "67108864B", "1GiB", ""):
        assert run(softcuda, start, {"VRAM": value}).status == 0
    assert run(softcuda, start, {"DEVICES": "0"}).status == NO_DEVICE


@on_device()
def test_the_current_context_is_the_top_of_the_threads_stack(driver: Driver) -> None:
    def current() -> int:
        return driver.out(c_void_p, "cuCtxGetCurrent")

    assert current() == driver.context
    made = driver.out(c_void_p, "cuCtxCreate_v2", 0, 0)
    assert current() == made
    driver("cuCtxPushCurrent_v2", driver.context)
    assert driver.out(c_void_p, "cuCtxPopCurrent_v2") == driver.context
    assert current() == made
    driver("cuCtxSetCurrent", driver.context)
    assert driver.out(c_void_p, "cuCtxPopCurrent_v2") == driver.context
    assert current() == driver.context
    driver("cuCtxSetCurrent", None)
    assert current() == 0
    assert driver.result("cuCtxPopCurrent_v2", byref(c_void_p())) == INVALID_CONTEXT
    assert driver.result("cuCtxGetDevice", byref(c_int())) == INVALID_CONTEXT
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(current()))
    thread.start()
    thread.join()
    assert others == [0]


@on_device()
def test_a_destroyed_context_gives_everything_back(driver: Driver) -> None:
    before = driver.free_bytes()
    made = driver.out(c_void_p, "cuCtxCreate_v2", 0, 0)
    stream = driver.stream()
    driver.alloc(MIB)
    driver.alloc(100)
    driver.pinned(MIB)
    gate = Gate(driver)
    driver.launch(gate.function, stream=stream)
    gate.open()
    driver("cuCtxDestroy_v2", made)
    assert gate.passed.is_set()
    assert driver.out(c_void_p, "cuCtxGetCurrent") == driver.context
    assert driver.free_bytes() == before
    assert driver.result("cuCtxPushCurrent_v2", made) == CONTEXT_IS_DESTROYED
    assert driver.result("cuCtxDestroy_v2", made) == CONTEXT_IS_DESTROYED
    assert driver.result("cuStreamSynchronize", stream) == INVALID_HANDLE
    assert driver.result("cuCtxDestroy_v2", driver.context) == INVALID_CONTEXT


@on_device()
def test_a_primary_context_lives_while_it_is_retained(driver: Driver) -> None:
    def active() -> int:
        flags, value = c_uint(), c_int()
        driver("cuDevicePrimaryCtxGetState", 0, byref(flags), byref(value))
        return value.value

    assert driver.out(c_void_p, "cuDevicePrimaryCtxRetain", 0) == driver.context
    driver.alloc(MIB)
    driver("cuDevicePrimaryCtxRelease_v2", 0)
    assert active() == 1
    driver("cuDevicePrimaryCtxRelease_v2", 0)
    assert active() == 0
    assert driver.result("cuDevicePrimaryCtxRelease_v2", 0) == INVALID_CONTEXT
    assert driver.result("cuMemAlloc_v2", byref(c_uint64()), 4) == CONTEXT_IS_DESTROYED
    assert driver.out(c_void_p, "cuDevicePrimaryCtxRetain", 0) == driver.context
    assert driver.free_bytes() == 64 * MIB
    driver.alloc(MIB)
    driver("cuDevicePrimaryCtxReset_v2", 0)
    assert driver.free_bytes() == 64 * MIB


@on_device()
def test_a_context_tells_and_keeps_its_settings(driver: Driver) -> None:
    assert driver.out(c_size_t, "cuCtxGetLimit", 0) == 1024
    driver("cuCtxSetLimit", 0, 4096)
    assert driver.out(c_size_t, "cuCtxGetLimit", 0) == 4096
    assert driver.result("cuCtxSetLimit", 99, 1) == INVALID_VALUE
    assert driver.out2(c_int, "cuCtxGetStreamPriorityRange") == (0, -5)
    assert driver.out(c_int, "cuCtxGetDevice") == 0
    assert driver.out(c_int, "cuCtxGetDevice_v2", driver.context) == 0
    driver("cuCtxSetCacheConfig", 2)
    assert driver.out(c_int, "cuCtxGetCacheConfig") == 2


@on_device()
def test_a_forked_child_is_turned_away(driver: Driver) -> None:
    gate, stream = Gate(driver), driver.stream()
    driver.launch(gate.function, stream=stream)
    child = os.fork()
    if not child:
        results = {
            driver.result("cuStreamSynchronize", stream),
            driver.result("cuMemAlloc_v2", byref(c_uint64()), 4),
            driver.result("cuInit", 0),
        }
        os._exit(0 if results == {NOT_INITIALIZED} else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.open()
    driver.sync(stream)
