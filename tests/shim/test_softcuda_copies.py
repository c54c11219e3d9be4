# SPDX-License-Identifier: GPL-2.0-or-later
"""The software device's copies and memsets in every form, against the same done in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

from .softcuda.driver import (
    ARRAY,
    DEVICE,
    HOST,
    INVALID_CONTEXT,
    INVALID_VALUE,
    MIB,
    NOT_SUPPORTED,
    PEER_ACCESS_ALREADY_ENABLED,
    PEER_ACCESS_NOT_ENABLED,
    UNIFIED,
    UNIT,
    Driver,
    Memcpy2D,
    Memcpy3D,
)
from .softcuda.harness import on_device, run

DATA = bytes(range(256)) * 64
SIZE = len(DATA)

Copy = Callable[[int, int, int, int], None]


def copies(driver: Driver) -> dict[str, Copy]:
    """Each one-dimensional form that copies between any two addresses."""

    def plain(name: str) -> Copy:
        return lambda dst, src, size, stream: driver(name, dst, src, size)

    def streamed(name: str) -> Copy:
        return lambda dst, src, size, stream: driver(name, dst, src, size, stream)

    return {
        **{name: plain(name) for name in ("cuMemcpy", "cuMemcpy_ptds")},
        **{name: streamed(name) for name in ("cuMemcpyAsync", "cuMemcpyAsync_ptsz")},
    }


@on_device()
def test_unified_copies_go_between_all_kinds_of_memory(driver: Driver) -> None:
    stream = driver.stream()
    pageable, out = ctypes.create_string_buffer(DATA, SIZE), ctypes.create_string_buffer(SIZE)
    places = [driver.alloc(SIZE), ctypes.addressof(driver.pinned(SIZE)), ctypes.addressof(pageable)]
    for name, copy in copies(driver).items():
        for src in places:
            for dst in places:
                driver("cuMemcpy", src, DATA, SIZE)
                if src != dst:
                    ctypes.memset(ctypes.addressof(out), 0, SIZE)
                    driver("cuMemcpy", dst, bytes(SIZE), SIZE)
                copy(dst, src, SIZE, stream)
                driver("cuCtxSynchronize")
                driver("cuMemcpy", out, dst, SIZE)
                assert out.raw == DATA, (name, places.index(src), places.index(dst))


@on_device()
def test_directed_copies_go_where_their_names_say(driver: Driver) -> None:
    address, stream = driver.alloc(4 * SIZE), driver.stream()
    for suffix in ("", "_ptds"):
        ahead, behind = DATA[::-1], ctypes.create_string_buffer(SIZE)
        driver(f"cuMemcpyHtoD_v2{suffix}", address, ahead, SIZE)
        driver(f"cuMemcpyDtoD_v2{suffix}", address + SIZE, address, SIZE)
        driver(
            f"cuMemcpyPeer{suffix}", address + 2 * SIZE, driver.context, address + SIZE, driver.context, SIZE
        )
        driver(f"cuMemcpyDtoH_v2{suffix}", behind, address + 2 * SIZE, SIZE)
        assert behind.raw == ahead
    for suffix in ("", "_ptsz"):
        behind = ctypes.create_string_buffer(SIZE)
        driver(f"cuMemcpyHtoDAsync_v2{suffix}", address, DATA, SIZE, stream)
        driver(f"cuMemcpyDtoDAsync_v2{suffix}", address + SIZE, address, SIZE, stream)
        contexts = (driver.context, address + SIZE, driver.context)
        driver(f"cuMemcpyPeerAsync{suffix}", address + 2 * SIZE, *contexts, SIZE, stream)
        driver(f"cuMemcpyDtoHAsync_v2{suffix}", behind, address + 2 * SIZE, SIZE, stream)
        driver.sync(stream)
        assert behind.raw == DATA


@on_device()
def test_pageable_memory_is_no_device_memory(driver: Driver) -> None:
    address, host = driver.alloc(SIZE), ctypes.addressof(ctypes.create_string_buffer(SIZE))
    assert driver.result("cuMemcpyHtoD_v2", host, DATA, SIZE) == INVALID_VALUE
    assert driver.result("cuMemcpyDtoH_v2", DATA, host, SIZE) == INVALID_VALUE
    assert driver.result("cuMemcpyDtoD_v2", address, host, SIZE) == INVALID_VALUE
    assert driver.result("cuMemsetD8_v2", host, 0, SIZE) == INVALID_VALUE
    assert driver.result("cuMemcpyHtoD_v2", 0, DATA, SIZE) == INVALID_VALUE
    assert driver.result("cuMemcpyHtoD_v2", (1 << 64) - 4, DATA, SIZE) == INVALID_VALUE
    assert driver.result("cuMemcpyHtoD_v2", address, DATA, 0) == 0


@on_device()
def test_batches_copy_each_piece(driver: Driver) -> None:
    address, stream = driver.alloc(SIZE), driver.stream()
    pieces = [DATA[:100], DATA[100:250]]
    buffers = [ctypes.create_string_buffer(piece, len(piece)) for piece in pieces]
    srcs = (c_uint64 * 2)(*map(ctypes.addressof, buffers))
    dsts, sizes = (c_uint64 * 2)(address, address + 100), (c_size_t * 2)(100, 150)
    attributes, indexes = ctypes.create_string_buffer(64), (c_size_t * 1)(0)
    rest = (attributes, indexes, 1)
    driver("cuMemcpyBatchAsync_v2", dsts, srcs, sizes, 2, *rest, stream)
    driver.sync(stream)
    assert driver.read(address, 250) == DATA[:250]
    assert driver.result("cuMemcpyBatchAsync_v2", dsts, srcs, sizes, 2, *rest, 0) == INVALID_VALUE
    dsts[1], fail = driver.reserve(UNIT), c_size_t()
    assert (
        driver.result("cuMemcpyBatchAsync", dsts, srcs, sizes, 2, *rest, byref(fail), stream) == INVALID_VALUE
    )
    assert fail.value == (1 << 64) - 1


def rows_2d(copy: Memcpy2D, src: bytes, dst: bytes) -> bytes:
    """The same copy in Python, on the bytes that the descriptor's two pointers point at."""
    result = bytearray(dst)
    for row in range(copy.Height):
        start = (copy.srcY + row) * copy.srcPitch + copy.srcXInBytes
        to = (copy.dstY + row) * copy.dstPitch + copy.dstXInBytes
        result[to : to + copy.WidthInBytes] = src[start : start + copy.WidthInBytes]
    return bytes(result)


@on_device()
def test_rectangles_are_copied_row_by_row(driver: Driver) -> None:
    address, stream = driver.alloc(SIZE), driver.stream()
    shape = {
        "srcXInBytes": 3, "srcY": 2, "srcPitch": 100, "dstXInBytes": 7, "dstY": 1, "dstPitch": 64,
        "WidthInBytes": 50, "Height": 20,
    }  # fmt: skip
    src = ctypes.create_string_buffer(DATA, SIZE)
    up = Memcpy2D(
        srcMemoryType=HOST, srcHost=ctypes.addressof(src), dstMemoryType=DEVICE, dstDevice=address, **shape
    )
    expected = rows_2d(up, DATA, b"\xee" * SIZE)

    def whole(call: Callable[[Any], None]) -> None:
        driver("cuMemsetD8_v2", address, 0xEE, SIZE)
        call(byref(up))
        driver("cuCtxSynchronize")
        assert driver.read(address, SIZE) == expected

    for name in ("cuMemcpy2D_v2", "cuMemcpy2D_v2_ptds", "cuMemcpy2DUnaligned_v2"):
        whole(lambda copy, name=name: driver(name, copy))  # type: ignore[misc]
    whole(lambda copy: driver("cuMemcpy2DAsync_v2", copy, 0))
    whole(lambda copy: driver("cuMemcpy2DAsync_v2_ptsz", copy, 0))
    up.srcMemoryType, up.srcDevice = UNIFIED, up.srcHost
    whole(lambda copy: driver("cuMemcpy2DAsync_v2", copy, 0))
    out = ctypes.create_string_buffer(SIZE)
    down = Memcpy2D(
        srcMemoryType=DEVICE, srcDevice=address, dstMemoryType=HOST, dstHost=ctypes.addressof(out), **shape
    )
    driver("cuMemcpy2DAsync_v2", byref(down), stream)
    driver.sync(stream)
    assert out.raw == rows_2d(down, expected, bytes(SIZE))


@on_device()
def test_rectangles_out_of_bounds_are_refused(driver: Driver) -> None:
    address = driver.alloc(1000)
    src = ctypes.create_string_buffer(DATA, SIZE)
    fields = {
        "srcMemoryType": HOST, "srcHost": ctypes.addressof(src), "srcPitch": 100,
        "dstMemoryType": DEVICE, "dstDevice": address, "dstPitch": 100, "WidthInBytes": 100, "Height": 10,
    }  # fmt: skip

    def result(**changes: int) -> int:
        return driver.result("cuMemcpy2D_v2", byref(Memcpy2D(**(fields | changes))))

    assert result() == 0
    assert result(Height=11) == INVALID_VALUE
    assert result(dstPitch=99) == INVALID_VALUE
    assert result(srcXInBytes=1) == INVALID_VALUE
    assert result(dstMemoryType=9) == INVALID_VALUE
    assert result(srcPitch=1 << 63) == INVALID_VALUE
    assert driver.result("cuMemcpy2D_v2", None) == INVALID_VALUE


@on_device()
def test_boxes_are_copied_slice_by_slice(driver: Driver) -> None:
    address, stream = driver.alloc(SIZE), driver.stream()
    src = ctypes.create_string_buffer(DATA, SIZE)
    copy = Memcpy3D(
        srcXInBytes=1, srcY=1, srcZ=1, srcMemoryType=HOST, srcHost=ctypes.addressof(src),
        srcPitch=32, srcHeight=10, dstXInBytes=2, dstY=2, dstZ=0, dstMemoryType=DEVICE,
        dstDevice=address, dstPitch=40, dstHeight=8, WidthInBytes=20, Height=5, Depth=4,
        reserved0=driver.context, reserved1=driver.context,
    )  # fmt: skip
    expected = bytearray(SIZE)
    for z in range(4):
        for y in range(5):
            start = ((z + 1) * 10 + y + 1) * 32 + 1
            to = (z * 8 + y + 2) * 40 + 2
            expected[to : to + 20] = DATA[start : start + 20]
    for name, args in (
        ("cuMemcpy3D_v2", ()),
        ("cuMemcpy3D_v2_ptds", ()),
        ("cuMemcpy3DPeer", ()),
        ("cuMemcpy3DAsync_v2", (stream,)),
        ("cuMemcpy3DPeerAsync_ptsz", (stream,)),
    ):
        driver("cuMemsetD8_v2", address, 0, SIZE)
        driver.sync()
        driver(name, byref(copy), *args)
        driver("cuCtxSynchronize")
        assert driver.read(address, SIZE) == bytes(expected), name
    copy.srcLOD = 1
    assert driver.result("cuMemcpy3D_v2", byref(copy)) == INVALID_VALUE


def copy_to_arrays(driver: Driver) -> None:
    copy = Memcpy2D(srcMemoryType=ARRAY, dstMemoryType=ARRAY, WidthInBytes=4, Height=1)
    for _ in range(2):
        assert driver.result("cuMemcpy2D_v2", byref(copy)) == NOT_SUPPORTED


def test_arrays_are_not_supported_and_said_so_once(softcuda: Any) -> None:
    ended = run(softcuda, copy_to_arrays, {})
    assert (ended.status, ended.stderr) == (0, "softcuda: copying to or from an array is not supported\n")


@on_device()
def test_memsets_of_every_form(driver: Driver) -> None:
    address, stream = driver.alloc(MIB), driver.stream()
    patterns = {8: (0xAB, b"\xab"), 16: (0x1234, b"\x34\x12"), 32: (0x12345678, b"\x78\x56\x34\x12")}
    for bits, (value, pattern) in patterns.items():
        n = 100
        row = pattern * n
        for name, args in (
            (f"cuMemsetD{bits}_v2", ()),
            (f"cuMemsetD{bits}_v2_ptds", ()),
            (f"cuMemsetD{bits}Async", (stream,)),
            (f"cuMemsetD{bits}Async_ptsz", (stream,)),
        ):
            driver("cuMemsetD8_v2", address, 0, 4096)
            driver.sync()
            driver(name, address, value, n, *args)
            driver("cuCtxSynchronize")
            assert driver.read(address, len(row) + 1) == row + b"\0", name
        for name, args in (
            (f"cuMemsetD2D{bits}_v2", ()),
            (f"cuMemsetD2D{bits}_v2_ptds", ()),
            (f"cuMemsetD2D{bits}Async", (stream,)),
            (f"cuMemsetD2D{bits}Async_ptsz", (stream,)),
        ):
            driver("cuMemsetD8_v2", address, 0, 4096)
            driver.sync()
            driver(name, address, 512, value, n, 3, *args)
            driver("cuCtxSynchronize")
            assert driver.read(address, 1536) == (row + bytes(512 - len(row))) * 3, name
    assert driver.result("cuMemsetD32_v2", address + 2, 0, 1) == INVALID_VALUE
    assert driver.result("cuMemsetD16_v2", address + 1, 0, 1) == INVALID_VALUE
    assert driver.result("cuMemsetD2D8_v2", address, 10, 0, 11, 2) == INVALID_VALUE
    assert driver.result("cuMemsetD32_v2", address, 0, 1 << 62) == INVALID_VALUE


@on_device(DEVICES="2")
def test_devices_copy_to_each_other(driver: Driver) -> None:
    here = driver.alloc(SIZE)
    driver.write(here, DATA)
    other = driver.out(c_void_p, "cuDevicePrimaryCtxRetain", 1)
    driver("cuCtxPushCurrent_v2", other)
    there = driver.alloc(SIZE)
    driver("cuMemcpyPeer", there, other, here, driver.context, SIZE)
    assert driver.read(there, SIZE) == DATA
    assert driver.out(c_int, "cuDeviceCanAccessPeer", 0, 1) == 1
    driver("cuCtxEnablePeerAccess", driver.context, 0)
    assert driver.result("cuCtxEnablePeerAccess", driver.context, 0) == PEER_ACCESS_ALREADY_ENABLED
    driver("cuCtxDisablePeerAccess", driver.context)
    assert driver.result("cuCtxDisablePeerAccess", driver.context) == PEER_ACCESS_NOT_ENABLED
    assert driver.result("cuMemcpyPeer", there, 0, here, driver.context, SIZE) == INVALID_CONTEXT
