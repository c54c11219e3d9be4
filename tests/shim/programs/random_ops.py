# SPDX-License-Identifier: GPL-2.0-or-later
"""Random copies, memsets, launches and frees over more memory than VRAM, each checked against numpy.

    random_ops.py SEED STEPS ALLOCATIONS MIB

Holds ALLOCATIONS allocations of up to MIB MiB. Runs on the software device, bare or under the shim;
exits 1 at the first difference. Some operations go to a second stream, ordered by an event.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

cuda = ctypes.CDLL("libcuda.so.1")


class Copy2D(ctypes.Structure):
    _fields_ = [
        ("srcXInBytes", c_size_t), ("srcY", c_size_t), ("srcMemoryType", c_int), ("srcHost", c_void_p),
        ("srcDevice", c_uint64), ("srcArray", c_void_p), ("srcPitch", c_size_t),
        ("dstXInBytes", c_size_t), ("dstY", c_size_t), ("dstMemoryType", c_int), ("dstHost", c_void_p),
        ("dstDevice", c_uint64), ("dstArray", c_void_p), ("dstPitch", c_size_t),
        ("WidthInBytes", c_size_t), ("Height", c_size_t),
    ]  # fmt: skip


def call(name: str, *args: object) -> None:
    code = getattr(cuda, name)(*args)
    if code:
        sys.exit(f"{name} returned {code}")


def u64(value: int) -> c_uint64:
    return c_uint64(value)


class Memory:
    """Allocations, and what numpy says is in them. Sizes in 4-byte words."""

    def __init__(self, seed: int, mib: int) -> None:
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.most = (mib << 20) // 4
        self.shadow: dict[int, np.ndarray] = {}
        call("cuInit", 0)
        context = c_void_p()
        call("cuDevicePrimaryCtxRetain", byref(context), 0)
        call("cuCtxSetCurrent", context)
        module = c_void_p()
        call("cuModuleLoadData", byref(module), b"softcuda")
        self.kernels = {}
        for name in ("fill_u32", "add_u32"):
            function = c_void_p()
            call("cuModuleGetFunction", byref(function), module, name.encode())
            self.kernels[name] = function
        self.other, self.event = c_void_p(), c_void_p()
        call("cuStreamCreate", byref(self.other), 1)
        call("cuEventCreate", byref(self.event), 2)

    def allocate(self) -> None:
        words = self.random.randint(self.most // 4, self.most)
        address = c_uint64()
        call("cuMemAlloc_v2", byref(address), c_size_t(words * 4))
        values = self.numbers.integers(0, 2**32, words, dtype=np.uint32)
        call("cuMemcpyHtoD_v2", address, c_void_p(values.ctypes.data), c_size_t(words * 4))
        self.shadow[address.value] = values

    def free(self) -> None:
        address = self.pick()
        call("cuMemFree_v2", u64(address))
        del self.shadow[address]
        self.allocate()

    def pick(self) -> int:
        return self.random.choice(list(self.shadow))

    def range_of(self, address: int) -> tuple[int, int]:
        words = len(self.shadow[address])
        start = self.random.randrange(words)
        return start, self.random.randint(1, min(words - start, 1 << self.random.randint(0, 22)))

    def upload(self) -> None:
        address = self.pick()
        start, n = self.range_of(address)
        values = self.numbers.integers(0, 2**32, n, dtype=np.uint32)
        name, extra = self.random.choice([("cuMemcpyHtoD_v2", ()), ("cuMemcpyHtoDAsync_v2", (None,))])
        call(name, u64(address + 4 * start), c_void_p(values.ctypes.data), c_size_t(4 * n), *extra)
        self.shadow[address][start : start + n] = values

    def download(self) -> None:
        address = self.pick()
        start, n = self.range_of(address)
        got = np.zeros(n, dtype=np.uint32)
        call("cuMemcpyDtoH_v2", c_void_p(got.ctypes.data), u64(address + 4 * start), c_size_t(4 * n))
        self.check(address, start, got)

    def check(self, address: int, start: int, got: np.ndarray) -> None:
        expected = self.shadow[address][start : start + len(got)]
        if not np.array_equal(got, expected):
            wrong = np.flatnonzero(got != expected)
            sys.exit(f"{len(wrong)} of {len(got)} words differ at {address:#x}+{4 * (start + int(wrong[0]))}")

    def between(self) -> None:
        """Device to device, within an allocation too (apart)."""
        one, two = self.pick(), self.pick()
        start, n = self.range_of(one)
        n = min(n, len(self.shadow[two]))
        there = self.random.randint(0, len(self.shadow[two]) - n)
        if one == two and abs(start - there) < n:
            return
        name, extra = self.random.choice([("cuMemcpyDtoD_v2", ()), ("cuMemcpyAsync", (None,))])
        call(name, u64(two + 4 * there), u64(one + 4 * start), c_size_t(4 * n), *extra)
        self.shadow[two][there : there + n] = self.shadow[one][start : start + n]

    def memset(self) -> None:
        address = self.pick()
        start, n = self.range_of(address)
        value = self.random.randrange(256)
        words = self.shadow[address][start : start + n]
        match self.random.randrange(3):
            case 0:
                call("cuMemsetD8_v2", u64(address + 4 * start), ctypes.c_ubyte(value), c_size_t(4 * n))
                words[:] = value * 0x01010101
            case 1:
                call("cuMemsetD16_v2", u64(address + 4 * start), ctypes.c_ushort(value), c_size_t(2 * n))
                words[:] = value * 0x00010001
            case _:
                call("cuMemsetD32Async", u64(address + 4 * start), c_uint(value), c_size_t(n), None)
                words[:] = value

    def rows(self) -> None:
        """A 2D copy from the host, rows apart by more than their width."""
        address = self.pick()
        words = len(self.shadow[address])
        pitch = self.random.randint(1, max(1, words // 64))
        width = self.random.randint(1, pitch)
        height = self.random.randint(1, words // pitch)
        values = self.numbers.integers(0, 2**32, (height, width), dtype=np.uint32)
        shape = Copy2D(
            srcMemoryType=1, srcHost=values.ctypes.data, srcPitch=4 * width, dstMemoryType=2,
            dstDevice=address, dstPitch=4 * pitch, WidthInBytes=4 * width, Height=height,
        )  # fmt: skip
        call("cuMemcpy2D_v2", byref(shape))
        self.shadow[address][: height * pitch].reshape(height, pitch)[:, :width] = values

    def launch(self, name: str, stream: c_void_p | None, *params: c_uint64 | c_uint) -> None:
        pointers = (c_void_p * len(params))(*(ctypes.addressof(p) for p in params))
        call("cuLaunchKernel", self.kernels[name], 1, 1, 1, 1, 1, 1, 0, stream, pointers, None)

    def on_either_stream(self) -> c_void_p | None:
        if self.random.random() < 0.7:
            return None
        call("cuEventRecord", self.event, None)
        call("cuStreamWaitEvent", self.other, self.event, 0)
        return self.other

    def back(self, stream: c_void_p | None) -> None:
        if stream is not None:
            call("cuEventRecord", self.event, stream)
            call("cuStreamWaitEvent", None, self.event, 0)

    def fill(self) -> None:
        address, value = self.pick(), self.random.randrange(2**32)
        start, n = self.range_of(address)
        stream = self.on_either_stream()
        self.launch("fill_u32", stream, u64(address + 4 * start), u64(n), c_uint(value))
        self.back(stream)
        self.shadow[address][start : start + n] = value

    def add(self) -> None:
        dst, left, right = (self.pick() for _ in range(3))
        n = min(len(self.shadow[a]) for a in (dst, left, right))
        n = min(n, 1 << self.random.randint(0, 20))
        stream = self.on_either_stream()
        self.launch("add_u32", stream, u64(dst), u64(left), u64(right), u64(n))
        self.back(stream)
        self.shadow[dst][:n] = self.shadow[left][:n] + self.shadow[right][:n]

    def operations(self) -> list[Callable[[], None]]:
        return [self.upload, self.download, self.between, self.memset, self.rows, self.fill, self.add]


def run(kind: type[Memory], seed: int, steps: int, allocations: int, mib: int, frees: float = 0.02) -> None:
    memory = kind(seed, mib)
    for _ in range(allocations):
        memory.allocate()
    operations = memory.operations()
    for _ in range(steps):
        operation = memory.free if memory.random.random() < frees else memory.random.choice(operations)
        operation()
    for address, values in memory.shadow.items():
        got = np.zeros_like(values)
        call("cuMemcpyDtoH_v2", c_void_p(got.ctypes.data), u64(address), c_size_t(got.nbytes))
        memory.check(address, 0, got)
    print("right")


if __name__ == "__main__":
    run(Memory, *map(int, sys.argv[1:]))
