# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver API by ctypes, as a test's program uses it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

MIB = 1 << 20
UNIT = 2 * MIB
"""Granularity of cuMemCreate, bytes."""

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
INVALID_DEVICE = 101
INVALID_IMAGE = 200
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
ILLEGAL_STATE = 401
NOT_FOUND = 500
NOT_READY = 600
ILLEGAL_ADDRESS = 700
PEER_ACCESS_ALREADY_ENABLED = 704
PEER_ACCESS_NOT_ENABLED = 705
CONTEXT_IS_DESTROYED = 709
ALREADY_REGISTERED = 712
NOT_REGISTERED = 713
NOT_PERMITTED = 800
NOT_SUPPORTED = 801
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901
CAPTURE_MERGE = 902
CAPTURE_UNMATCHED = 903
CAPTURE_UNJOINED = 904
CAPTURE_ISOLATION = 905
CAPTURE_IMPLICIT = 906
CAPTURED_EVENT = 907
CAPTURE_WRONG_THREAD = 908

NON_BLOCKING = 1
READ, READ_WRITE = 1, 3
HOST, DEVICE, ARRAY, UNIFIED = 1, 2, 3, 4

KernelFn = ctypes.CFUNCTYPE(None, c_void_p, ctypes.POINTER(c_void_p))
HostFn = ctypes.CFUNCTYPE(None, c_void_p)
StreamCallback = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p)


class Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class AllocationProp(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("requestedHandleTypes", c_int),
        ("location", Location),
        ("win32HandleMetaData", c_void_p),
        ("allocFlags", c_uint64),
    )


class AccessDesc(ctypes.Structure):
    _fields_ = (("location", Location), ("flags", c_int))


class Memcpy2D(ctypes.Structure):
    _fields_ = (
        *((name, c_size_t) for name in ("srcXInBytes", "srcY")),
        ("srcMemoryType", c_int),
        *((name, c_uint64) for name in ("srcHost", "srcDevice", "srcArray", "srcPitch")),
        *((name, c_size_t) for name in ("dstXInBytes", "dstY")),
        ("dstMemoryType", c_int),
        *((name, c_uint64) for name in ("dstHost", "dstDevice", "dstArray", "dstPitch")),
        *((name, c_size_t) for name in ("WidthInBytes", "Height")),
    )


class Memcpy3D(ctypes.Structure):
    _fields_ = (
        *((name, c_size_t) for name in ("srcXInBytes", "srcY", "srcZ", "srcLOD")),
        ("srcMemoryType", c_int),
        *((name, c_uint64) for name in ("srcHost", "srcDevice", "srcArray", "reserved0")),
        *((name, c_size_t) for name in ("srcPitch", "srcHeight")),
        *((name, c_size_t) for name in ("dstXInBytes", "dstY", "dstZ", "dstLOD")),
        ("dstMemoryType", c_int),
        *((name, c_uint64) for name in ("dstHost", "dstDevice", "dstArray", "reserved1")),
        *((name, c_size_t) for name in ("dstPitch", "dstHeight")),
        *((name, c_size_t) for name in ("WidthInBytes", "Height", "Depth")),
    )


class KernelNodeParams(ctypes.Structure):
    _fields_ = (
        ("func", c_void_p),
        *((name, c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("kernelParams", ctypes.POINTER(c_void_p)),
        ("extra", ctypes.POINTER(c_void_p)),
        ("kern", c_void_p),
        ("ctx", c_void_p),
    )


class MemsetNodeParams(ctypes.Structure):
    _fields_ = (
        ("dst", c_uint64),
        ("pitch", c_size_t),
        ("value", c_uint),
        ("elementSize", c_uint),
        ("width", c_size_t),
        ("height", c_size_t),
    )


class HostNodeParams(ctypes.Structure):
    _fields_ = (("fn", HostFn), ("userData", c_void_p))


class LaunchConfig(ctypes.Structure):
    _fields_ = (
        *((name, c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", c_void_p),
        ("attrs", c_void_p),
        ("numAttrs", c_uint),
    )


class CudaError(Exception):
    """A call that returned something else than CUDA_SUCCESS."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} returned {code}")
        self.code = code


def _argument(value: Any) -> Any:
    # A whole register each: what is narrower takes its part, and addresses keep their upper half.
    if isinstance(value, int):
        return c_uint64(value)
    return c_void_p(None) if value is None else value


class Driver:
    """A loaded driver. Handles and device addresses are plain integers."""

    def __init__(self, path: str, *, init: bool = True) -> None:
        self.library = ctypes.CDLL(path)
        self._module = 0
        self._keep: list[Any] = []
        if init:
            self("cuInit", 0)
            self.context = self.out(c_void_p, "cuDevicePrimaryCtxRetain", 0)
            self("cuCtxSetCurrent", self.context)

    def result(self, name: str, *args: Any) -> int:
        """Calls a function; what it returned."""
        return int(self.library[name](*map(_argument, args)))

    def __call__(self, name: str, *args: Any) -> None:
        """Calls a function; CudaError unless it succeeds."""
        if code := self.result(name, *args):
            raise CudaError(name, code)

    def out(self, kind: Any, name: str, *args: Any) -> int:
        """Calls a function whose first parameter is where it puts its answer, of ctypes type `kind`."""
        value = kind()
        self(name, byref(value), *args)
        return int(value.value or 0)

    def out2(self, kind: Any, name: str, *args: Any) -> tuple[int, int]:
        """The same with two answers of one type."""
        first, second = kind(), kind()
        self(name, byref(first), byref(second), *args)
        return int(first.value), int(second.value)

    def out_after(self, kind: Any, name: str, handle: int) -> int:
        """Calls a function whose second parameter is where it puts its answer."""
        value = kind()
        self(name, handle, byref(value))
        return int(value.value)

    # Memory

    def alloc(self, size: int) -> int:
        return self.out(c_uint64, "cuMemAlloc_v2", size)

    def free_bytes(self) -> int:
        return self.out2(c_size_t, "cuMemGetInfo_v2")[0]

    def reserve(self, size: int, alignment: int = 0, hint: int = 0) -> int:
        return self.out(c_uint64, "cuMemAddressReserve", size, alignment, hint, 0)

    def create(self, size: int = UNIT, device: int = 0) -> int:
        prop = AllocationProp(type=1, location=Location(1, device))
        return self.out(c_uint64, "cuMemCreate", size, byref(prop), 0)

    def access(self, address: int, size: int, flags: int = READ_WRITE, device: int = 0) -> None:
        self("cuMemSetAccess", address, size, byref(AccessDesc(Location(1, device), flags)), 1)

    def map(self, address: int, handle: int, size: int = UNIT, flags: int = READ_WRITE) -> None:
        """Maps memory and makes it accessible."""
        self("cuMemMap", address, size, 0, handle, 0)
        self.access(address, size, flags)

    def write(self, address: int, data: bytes) -> None:
        self("cuMemcpyHtoD_v2", address, data, len(data))

    def read(self, address: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self("cuMemcpyDtoH_v2", buffer, address, size)
        return buffer.raw

    def pinned(self, size: int) -> ctypes.Array[ctypes.c_char]:
        """Host memory from the driver."""
        address = self.out(c_void_p, "cuMemHostAlloc", size, 0)
        return (ctypes.c_char * size).from_address(address)

    # Order

    def stream(self, flags: int = NON_BLOCKING) -> int:
        return self.out(c_void_p, "cuStreamCreate", flags)

    def event(self, flags: int = 0) -> int:
        return self.out(c_void_p, "cuEventCreate", flags)

    def sync(self, stream: int = 0) -> None:
        self("cuStreamSynchronize", stream)

    # Kernels

    def register(self, name: str, function: Callable[[Any], object], *sizes: int) -> int:
        """Makes a Python function a kernel; it is called with the launch's parameters. Its CUfunction."""

        def call(launch: int, params: Any) -> None:
            function(params)

        callback = KernelFn(call)
        self._keep.append(callback)
        self("softcudaRegisterKernel", name.encode(), callback, len(sizes), (c_size_t * len(sizes))(*sizes))
        return self.function(name)

    def function(self, name: str) -> int:
        if not self._module:
            self._module = self.out(c_void_p, "cuModuleLoadData", b"softcuda")
        return self.out(c_void_p, "cuModuleGetFunction", self._module, name.encode())

    def launch(self, function: int, *params: Any, stream: int = 0) -> None:
        """One block of one thread. Parameters are ctypes values."""
        self("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, stream, pointers(*params), None)

    def host_function(self, function: Callable[[], None]) -> Any:
        """A Python function as a CUhostFn."""
        callback = HostFn(lambda _: function())
        self._keep.append(callback)
        return callback

    def elapsed(self, start: int, end: int) -> float:
        milliseconds = c_float()
        self("cuEventElapsedTime", byref(milliseconds), start, end)
        return milliseconds.value


def pointers(*params: Any) -> Any:
    """What kernelParams is: pointers to the parameters' values."""
    array = (c_void_p * max(len(params), 1))(*(ctypes.addressof(param) for param in params))
    vars(array)["kept"] = params  # alive as long as the pointers
    return array
