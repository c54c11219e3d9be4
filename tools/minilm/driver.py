# SPDX-License-Identifier: GPL-2.0-or-later
"""The CUDA driver API by ctypes: the few calls that a small inference program needs.

Every failure raises CudaError with the driver's own name of the error. Device addresses are plain
ints. The default stream is used throughout, so work is done in the order it was asked for.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, TypeAlias

import numpy.typing as npt

__all__ = ["CudaError", "Driver", "Parameter"]

Parameter: TypeAlias = ctypes.c_uint64 | ctypes.c_uint32 | ctypes.c_float
"""A kernel parameter: a device address, a count, or a scalar."""

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
}


class CudaError(RuntimeError):
    """A driver call that did not return CUDA_SUCCESS."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.call = call
        self.code = code
        self.name = name


class Driver:
    """libcuda.so.1 with the primary context of device 0 current on the calling thread.

    A context manager: leaving it gives the context back, and with it all memory and modules.
    """

    def __init__(self) -> None:
        """Raises OSError where there is no driver and CudaError where there is no device."""
        self.library = ctypes.CDLL("libcuda.so.1")
        for name, argtypes in _SIGNATURES.items():
            function = getattr(self.library, name)
            function.argtypes = argtypes
            function.restype = c_int
        self._call("cuInit", 0)
        self._device = c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exc: object) -> None:
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self.library, name)(*args)
        if code:
            raise CudaError(name, code, self._error_name(code))

    def _error_name(self, code: int) -> str:
        name = c_char_p()
        if self.library.cuGetErrorName(code, ctypes.byref(name)) or name.value is None:
            return "unknown error"
        return name.value.decode()

    def device_name(self) -> str:
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), self._device)
        return name.value.decode()

    def memory_info(self) -> tuple[int, int]:
        """Free and total device memory, bytes."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """The address of `size` new bytes, aligned to 256 at least. Their content is undefined."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        """Waits for work that uses the memory, then gives it back."""
        self._call("cuMemFree_v2", address)

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copies a whole contiguous array to the device; the array may change afterwards."""
        if not array.flags.c_contiguous:
            raise ValueError("only contiguous arrays can be copied in one go")
        self._call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Fills a contiguous array from the device, after all work asked for so far."""
        if not array.flags.c_contiguous:
            raise ValueError("only contiguous arrays can be copied in one go")
        self._call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)

    def load_module(self, image: bytes) -> c_void_p:
        """A module from its image: cubin, fatbin, PTX, or whatever the device understands."""
        module = c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), image)
        return module

    def get_function(self, module: c_void_p, name: str) -> c_void_p:
        """A kernel of a module. Raises CudaError CUDA_ERROR_NOT_FOUND."""
        function = c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(self, function: c_void_p, parameters: list[Parameter], grid: int = 1, block: int = 1) -> None:
        """Queues one launch. The driver copies the parameters before it returns."""
        pointers = (c_void_p * len(parameters))(*(ctypes.addressof(p) for p in parameters))
        self._call("cuLaunchKernel", function, grid, 1, 1, block, 1, 1, 0, None, pointers, None)

    def synchronize(self) -> None:
        """Waits for everything asked for so far; an error of a kernel shows here."""
        self._call("cuCtxSynchronize")
