# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations of random_ops.py on memory that the program maps itself, as allocators do.

    python -m tests.shim.programs.vmm_ops HOW SEED STEPS ALLOCATIONS MIB

HOW: "alone", each allocation in a reservation of its own, as XLA's, or "beside", side by side in one
reservation, of pieces of 6 MiB that come and go, as PyTorch's expandable segments. Now and then an
allocation is mapped elsewhere, and its bytes go with it.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from ctypes import byref, c_size_t, c_uint64, c_void_p

import numpy as np

from .random_ops import Memory, call, run, u64

MIB = 1 << 20
UNIT = 2 * MIB
PIECE = 6 * MIB

PROP = ctypes.create_string_buffer(struct.pack("<4i", 1, 0, 1, 0), 64)
ACCESS = ctypes.create_string_buffer(struct.pack("<3i", 1, 0, 3))


def create(size: int) -> int:
    handle = c_uint64()
    call("cuMemCreate", byref(handle), c_size_t(size), PROP, u64(0))
    return handle.value


def reserve(size: int) -> int:
    address = c_uint64()
    call("cuMemAddressReserve", byref(address), c_size_t(size), c_size_t(0), u64(0), u64(0))
    return address.value


def put(address: int, size: int, handle: int) -> None:
    call("cuMemMap", u64(address), c_size_t(size), c_size_t(0), u64(handle), u64(0))


def release(handle: int) -> None:
    call("cuMemRelease", u64(handle))


def allow(address: int, size: int) -> None:
    call("cuMemSetAccess", u64(address), c_size_t(size), ACCESS, c_size_t(1))


def unmap(address: int, size: int) -> None:
    call("cuMemUnmap", u64(address), c_size_t(size))


class Mapped(Memory):
    """What both ways have in common."""

    def filled(self, address: int, words: int) -> None:
        values = self.numbers.integers(0, 2**32, words, dtype=np.uint32)
        call("cuMemcpyHtoD_v2", u64(address), c_void_p(values.ctypes.data), c_size_t(words * 4))
        self.shadow[address] = values

    def finish(self) -> None:
        call("cuCtxSynchronize")  # as every allocator does before it unmaps


class Alone(Mapped):
    """The handle is kept, or let go as soon as it is mapped."""

    def __init__(self, seed: int, mib: int) -> None:
        super().__init__(seed, mib)
        self.handles: dict[int, int] = {}  # those that are kept
        self.sizes: dict[int, int] = {}

    def allocate(self) -> None:
        words = self.random.randint(self.most // 4, self.most)
        size = -(-words * 4 // UNIT) * UNIT
        handle = create(size)
        address = reserve(size)
        put(address, size, handle)
        allow(address, size)
        if self.random.random() < 0.5:
            release(handle)
        else:
            self.handles[address] = handle
        self.sizes[address] = size
        self.filled(address, words)

    def free(self) -> None:
        address = self.pick()
        if address in self.handles and self.random.random() < 0.6:
            self.move(address)
            return
        size, handle = self.sizes.pop(address), self.handles.pop(address, 0)
        self.finish()
        late = self.random.random() < 0.5
        if handle and not late:
            release(handle)
        unmap(address, size)
        if handle and late:
            release(handle)
        call("cuMemAddressFree", u64(address), c_size_t(size))
        del self.shadow[address]
        self.allocate()

    def move(self, address: int) -> None:
        """At new addresses; the old ones are given back before or after."""
        size, handle = self.sizes.pop(address), self.handles.pop(address)
        early = self.random.random() < 0.5
        self.finish()
        unmap(address, size)
        if early:
            call("cuMemAddressFree", u64(address), c_size_t(size))
        fresh = reserve(size)
        put(fresh, size, handle)
        allow(fresh, size)
        if not early:
            call("cuMemAddressFree", u64(address), c_size_t(size))
        self.sizes[fresh], self.handles[fresh] = size, handle
        self.shadow[fresh] = self.shadow.pop(address)


class Beside(Mapped):
    """An allocation is some adjacent pieces, which often share chunks with their neighbours."""

    def __init__(self, seed: int, mib: int) -> None:
        super().__init__(seed, mib)
        self.places = 64
        self.base = reserve(self.places * PIECE)
        self.handles: dict[int, int] = {}  # by place
        self.spans: dict[int, range] = {}  # places, by address

    def gap(self, count: int) -> range:
        gaps = [
            range(i, i + count)
            for i in range(self.places - count + 1)
            if not any(p in self.handles for p in range(i, i + count))
        ]
        return gaps[0] if self.random.random() < 0.7 else self.random.choice(gaps)

    def at(self, place: int) -> int:
        return self.base + place * PIECE

    def allocate(self) -> None:
        words = self.random.randint(self.most // 4, self.most)
        span = self.gap(-(-words * 4 // PIECE))
        for place in span:
            self.handles[place] = create(PIECE)
        self.map(span)
        address = self.at(span.start)
        self.spans[address] = span
        self.filled(address, words)

    def map(self, span: range) -> None:
        for place in span:
            put(self.at(place), PIECE, self.handles[place])
        allow(self.at(span.start), len(span) * PIECE)

    def free(self) -> None:
        address = self.pick()
        span = self.spans.pop(address)
        self.finish()
        if self.random.random() < 0.5:
            self.move(address, span)
            return
        unmap(address, len(span) * PIECE)
        for place in span:
            release(self.handles.pop(place))
        del self.shadow[address]
        self.allocate()

    def move(self, address: int, span: range) -> None:
        """To another gap, or to the same pieces' places in another order and what was there with it."""
        handles = [self.handles.pop(place) for place in span]
        unmap(address, len(span) * PIECE)
        fresh = self.gap(len(span))
        self.handles.update(zip(fresh, handles, strict=True))
        self.map(fresh)
        self.spans[self.at(fresh.start)] = fresh
        self.shadow[self.at(fresh.start)] = self.shadow.pop(address)


if __name__ == "__main__":
    how, *numbers = sys.argv[1:]
    seed, steps, allocations, mib = map(int, numbers)
    run({"alone": Alone, "beside": Beside}[how], seed, steps, allocations, mib, frees=0.1)
