# SPDX-License-Identifier: GPL-2.0-or-later
"""The software device's kernels: parameters, handles, and what the driver refuses."""

from __future__ import annotations

import ctypes
import tempfile
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

from .softcuda.driver import (
    INVALID_HANDLE,
    INVALID_IMAGE,
    INVALID_VALUE,
    MIB,
    NOT_FOUND,
    Driver,
    KernelFn,
    KernelNodeParams,
    LaunchConfig,
    pointers,
)
from .softcuda.harness import Gate, on_device

FNV_OFFSET, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


class Launch(ctypes.Structure):
    """struct softcuda_launch."""

    _fields_ = (
        ("name", c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("device", c_int),
        ("stream", c_uint64),
        ("buffer", c_void_p),
        ("bytes", c_size_t),
    )


class Catcher:
    """A kernel of 1, 8, 2, 4 and 12 bytes that keeps what it was launched with."""

    sizes = (1, 8, 2, 4, 12)
    offsets = (0, 8, 16, 20, 24)
    length = 36

    def __init__(self, driver: Driver) -> None:
        self.params: list[list[bytes]] = []
        self.launches: list[Launch] = []
        self.buffers: list[bytes] = []
        self._callback = KernelFn(self._call)
        sizes = (c_size_t * 5)(*self.sizes)
        driver("softcudaRegisterKernel", b"catcher", self._callback, 5, sizes)
        self.function = driver.function("catcher")

    def _call(self, launch: int, params: Any) -> None:
        self.params.append([ctypes.string_at(params[i], size) for i, size in enumerate(self.sizes)])
        self.launches.append(Launch.from_buffer_copy((c_char * ctypes.sizeof(Launch)).from_address(launch)))
        self.buffers.append(ctypes.string_at(self.launches[-1].buffer, self.launches[-1].bytes))


VALUES = (c_uint8(1), c_uint64(2), c_uint16(3), c_uint32(4), (c_uint32 * 3)(5, 6, 7))
BYTES = [bytes(value) for value in VALUES]


def packed() -> bytearray:
    """VALUES, laid out as a C struct."""
    buffer = bytearray(Catcher.length)
    for offset, value in zip(Catcher.offsets, BYTES, strict=True):
        buffer[offset : offset + len(value)] = value
    return buffer


def extra_list(buffer: Any, size: c_size_t) -> Any:
    """What cuLaunchKernel's extra is."""
    entries = (c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0)
    vars(entries)["kept"] = (buffer, size)
    return entries


@on_device()
def test_a_kernel_gets_its_parameters_and_its_launch(driver: Driver) -> None:
    catcher, stream = Catcher(driver), driver.stream()
    driver("cuLaunchKernel", catcher.function, 2, 3, 4, 5, 6, 7, 1024, stream, pointers(*VALUES), None)
    driver.sync(stream)
    assert catcher.params == [BYTES]
    launch = catcher.launches[0]
    assert (launch.name, list(launch.grid), list(launch.block)) == (b"catcher", [2, 3, 4], [5, 6, 7])
    assert (launch.shared, launch.device, launch.bytes) == (1024, 0, Catcher.length)
    stream_id = driver.out_after(ctypes.c_ulonglong, "cuStreamGetId", stream)
    assert launch.stream == stream_id
    for offset, value in zip(Catcher.offsets, BYTES, strict=True):
        assert catcher.buffers[0][offset : offset + len(value)] == value


@on_device()
def test_parameters_are_copied_when_the_launch_is_made(driver: Driver) -> None:
    catcher, gate, stream = Catcher(driver), Gate(driver), driver.stream()
    driver.launch(gate.function, stream=stream)
    values = [type(value).from_buffer_copy(value) for value in VALUES]
    driver.launch(catcher.function, *values, stream=stream)
    values[1].value = 99
    gate.open()
    driver.sync(stream)
    assert catcher.params == [BYTES]


@on_device()
def test_parameters_may_come_in_one_packed_buffer(driver: Driver) -> None:
    catcher = Catcher(driver)
    buffer = (c_char * Catcher.length).from_buffer(packed())
    extra = extra_list(buffer, c_size_t(Catcher.length))
    driver("cuLaunchKernel", catcher.function, 1, 1, 1, 1, 1, 1, 0, 0, None, extra)
    driver.sync()
    assert catcher.params == [BYTES]

    def refused(size: int, params: Any = None) -> int:
        entries = extra_list(buffer, c_size_t(size))
        return driver.result("cuLaunchKernel", catcher.function, 1, 1, 1, 1, 1, 1, 0, 0, params, entries)

    assert refused(Catcher.length - 1) == INVALID_VALUE
    assert refused(Catcher.length, pointers(*VALUES)) == INVALID_VALUE
    assert (
        driver.result("cuLaunchKernel", catcher.function, 1, 1, 1, 1, 1, 1, 0, 0, None, None) == INVALID_VALUE
    )


@on_device()
def test_launches_of_every_form_run(driver: Driver) -> None:
    catcher = Catcher(driver)
    config = LaunchConfig(2, 1, 1, 8, 1, 1, 0, None, None, 0)
    driver("cuLaunchKernelEx", byref(config), catcher.function, pointers(*VALUES), None)
    driver("cuLaunchCooperativeKernel", catcher.function, 3, 1, 1, 1, 1, 1, 0, 0, pointers(*VALUES))
    driver("cuLaunchKernel_ptsz", catcher.function, 4, 1, 1, 1, 1, 1, 0, 0, pointers(*VALUES), None)
    driver("cuCtxSynchronize")
    assert sorted(launch.grid[0] for launch in catcher.launches) == [2, 3, 4]
    config.numAttrs = 1
    assert driver.result("cuLaunchKernelEx", byref(config), catcher.function, None, None) == INVALID_VALUE


@on_device()
def test_shapes_out_of_bounds_are_refused(driver: Driver) -> None:
    noop = driver.function("noop")

    def launch(*shape: int, shared: int = 0) -> int:
        return driver.result("cuLaunchKernel", noop, *shape, shared, 0, None, None)

    assert launch(1, 1, 1, 32, 32, 1) == 0
    for shape in ((0, 1, 1, 1, 1, 1), (1, 1, 1, 1, 0, 1), (1, 65536, 1, 1, 1, 1), (1, 1, 1, 32, 33, 1)):
        assert launch(*shape) == INVALID_VALUE
    # The product of these wraps round to one thread.
    assert launch(1, 1, 1, 1 << 31, 1 << 31, 4) == INVALID_VALUE
    assert launch(1, 1, 1, 1, 1, 1, shared=1 << 20) == INVALID_VALUE


@on_device()
def test_a_function_tells_its_layout(driver: Driver) -> None:
    function = Catcher(driver).function
    for index, expected in enumerate(zip(Catcher.offsets, Catcher.sizes, strict=True)):
        offset, size = c_size_t(), c_size_t()
        driver("cuFuncGetParamInfo", function, index, byref(offset), byref(size))
        assert (offset.value, size.value) == expected
    driver("cuFuncGetParamInfo", function, 1, byref(offset), None)
    assert driver.result("cuFuncGetParamInfo", function, 5, byref(offset), byref(size)) == INVALID_VALUE
    assert driver.result("cuKernelGetParamInfo", function, 0, byref(offset), byref(size)) == INVALID_HANDLE


@on_device()
def test_a_kernel_handle_launches_where_a_function_is_expected(driver: Driver) -> None:
    catcher = Catcher(driver)
    library = driver.out(c_void_p, "cuLibraryLoadData", b"softcuda", None, None, 0, None, None, 0)
    kernel = driver.out(c_void_p, "cuLibraryGetKernel", library, b"catcher")
    assert driver.out(c_void_p, "cuLibraryGetKernel", library, b"catcher") == kernel
    driver.launch(kernel, *VALUES)
    function = driver.out(c_void_p, "cuKernelGetFunction", kernel)
    driver.launch(function, *VALUES)
    driver.sync()
    assert catcher.params == [BYTES, BYTES]
    offset, size = c_size_t(), c_size_t()
    driver("cuKernelGetParamInfo", kernel, 3, byref(offset), byref(size))
    assert (offset.value, size.value) == (20, 4)
    # As measured on hardware.
    assert driver.result("cuFuncGetParamInfo", kernel, 3, byref(offset), byref(size)) == INVALID_HANDLE
    driver("cuFuncGetParamInfo", function, 3, byref(offset), byref(size))
    assert driver.out(c_void_p, "cuKernelGetLibrary", kernel) == library
    assert driver.out(c_void_p, "cuFuncGetModule", function) == driver.out(
        c_void_p, "cuLibraryGetModule", library
    )
    name = c_char_p()
    for call, handle in (("cuKernelGetName", kernel), ("cuFuncGetName", kernel), ("cuFuncGetName", function)):
        driver(call, byref(name), handle)
        assert name.value == b"catcher"
    driver("cuLibraryUnload", library)


@on_device()
def test_only_marked_images_load_and_only_registered_names_are_found(driver: Driver) -> None:
    module = c_void_p()
    assert driver.result("cuModuleLoadData", byref(module), b"\x7fELF") == INVALID_IMAGE
    assert driver.result("cuModuleLoadData", byref(module), None) == INVALID_VALUE
    driver("cuModuleLoadDataEx", byref(module), b"softcuda and more", 0, None, None)
    function = c_void_p()
    assert driver.result("cuModuleGetFunction", byref(function), module, b"nobody") == NOT_FOUND
    driver("cuModuleGetFunction", byref(function), module, b"noop")
    again = c_void_p()
    driver("cuModuleGetFunction", byref(again), module, b"noop")
    assert again.value == function.value
    size, address = c_size_t(), c_uint64()
    assert driver.result("cuModuleGetGlobal_v2", byref(address), byref(size), module, b"x") == NOT_FOUND
    driver("cuModuleUnload", module)
    with tempfile.NamedTemporaryFile() as file:
        assert driver.result("cuModuleLoad", byref(module), file.name.encode()) == INVALID_IMAGE
        file.write(b"softcuda")
        file.flush()
        driver("cuModuleLoad", byref(module), file.name.encode())
    assert driver.result("cuModuleLoad", byref(module), b"/nonexistent") == 301


@on_device()
def test_a_name_registered_again_is_the_new_kernel_from_then_on(driver: Driver) -> None:
    called: list[str] = []
    old = driver.register("twice", lambda params: called.append("old"))
    new = driver.register("twice", lambda params: called.append("new"))
    driver.launch(old)
    driver.launch(new)
    driver.sync()
    assert called == ["old", "new"]


@on_device()
def test_registrations_that_make_no_sense_are_refused(driver: Driver) -> None:
    callback = KernelFn(lambda launch, params: None)

    def register(name: bytes | None, function: Any, *sizes: int) -> int:
        return driver.result(
            "softcudaRegisterKernel", name, function, len(sizes), (c_size_t * len(sizes))(*sizes)
        )

    assert register(b"", callback) == INVALID_VALUE
    assert register(None, callback) == INVALID_VALUE
    assert register(b"x", None) == INVALID_VALUE
    assert register(b"x", callback, 4, 0) == INVALID_VALUE
    assert register(b"x", callback, 30000, 30000) == INVALID_VALUE
    assert driver.result("softcudaRegisterKernel", b"x", callback, 1, None) == INVALID_VALUE


@on_device()
def test_attributes_are_told_and_kept(driver: Driver) -> None:
    function = driver.function("noop")
    assert driver.out(c_int, "cuFuncGetAttribute", 0, function) == 1024
    assert driver.out(c_int, "cuFuncGetAttribute", 8, function) == 48 << 10
    driver("cuFuncSetAttribute", function, 8, 100_000)
    assert driver.out(c_int, "cuFuncGetAttribute", 8, function) == 100_000
    assert driver.result("cuFuncSetAttribute", function, 8, 1 << 20) == INVALID_VALUE
    assert driver.result("cuFuncSetAttribute", function, 0, 1) == INVALID_VALUE
    assert driver.result("cuFuncGetAttribute", byref(c_int()), 99, function) == INVALID_VALUE
    assert driver.out(c_int, "cuOccupancyMaxActiveBlocksPerMultiprocessor", function, 256, 0) == 8
    assert driver.result("cuFuncGetAttribute", byref(c_int()), 0, driver.stream()) == INVALID_HANDLE


@on_device()
def test_the_kernels_that_come_with_the_device(driver: Driver) -> None:
    address = driver.alloc(MIB)
    a, b, total, out = (address + 4096 * index for index in range(4))
    driver.launch(driver.function("fill_u32"), c_uint64(a), c_uint64(1024), c_uint32(40))
    driver.launch(driver.function("fill_u32"), c_uint64(b), c_uint64(1024), c_uint32(2))
    driver.launch(driver.function("add_u32"), *map(c_uint64, (total, a, b, 1024)))
    driver.launch(driver.function("checksum"), *map(c_uint64, (total, 4096, out)))
    driver.launch(driver.function("noop"))
    expected = FNV_OFFSET
    for byte in (data := driver.read(total, 4096)):
        expected = (expected ^ byte) * FNV_PRIME % (1 << 64)
    assert data == b"\x2a\0\0\0" * 1024
    assert int.from_bytes(driver.read(out, 8), "little") == expected


@on_device()
def test_node_parameters_are_checked_like_a_launchs(driver: Driver) -> None:
    graph, node = driver.out(c_void_p, "cuGraphCreate", 0), c_void_p()
    params = KernelNodeParams(driver.function("noop"), 1, 1, 1, 1, 1, 1, 0)
    driver("cuGraphAddKernelNode_v2", byref(node), graph, None, 0, byref(params))
    params.gx = 0
    assert (
        driver.result("cuGraphAddKernelNode_v2", byref(node), graph, None, 0, byref(params)) == INVALID_VALUE
    )
    params.func = driver.stream()
    assert (
        driver.result("cuGraphAddKernelNode_v2", byref(node), graph, None, 0, byref(params)) == INVALID_HANDLE
    )
