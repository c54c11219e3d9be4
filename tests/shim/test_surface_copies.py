# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies and memsets of paged memory, in every form that the driver has."""

from __future__ import annotations

import pytest

from .test_surface import BEGIN, PAGED, right
from .tiers import Runner

FORMS = (
    BEGIN
    + """
import os
from tests.shim.softcuda.driver import Memcpy2D, Memcpy3D

HOST, DEVICE, UNIFIED = 1, 2, 4
ROW = MIB // 2
SMALL, BIG = 8 * MIB, 20 * MIB  # of which the latter does not fit VRAM
others = [alloc(16 * MIB)]
a, b, big = alloc(SMALL), alloc(SMALL), alloc(BIG)
at, n = MIB + 4, 3 * MIB + 12
data = os.urandom(BIG)
host = ctypes.create_string_buffer(BIG)
here = ctypes.addressof(host)
s = stream()
per_thread = "--per-thread" in sys.argv

def variant(name, asynchronous, synchronous="_ptds"):
    return name + (("_ptsz" if asynchronous else synchronous) if per_thread else "")

def put(to, what):
    call("cuMemcpyHtoD_v2", c_uint64(to), what, c_size_t(len(what)))

def get(source, size):
    got = ctypes.create_string_buffer(size)
    call("cuMemcpyDtoH_v2", got, c_uint64(source), c_size_t(size))
    return got.raw

def run(name, asynchronous, *args):
    evict()
    call("cuCtxSynchronize")
    call(variant(name, asynchronous), *args, *([s] if asynchronous else []))
    call("cuCtxSynchronize")
    evict()

linear = c_size_t(n)
for name, to, source in (
    ("cuMemcpy", b, a), ("cuMemcpyDtoD_v2", b, a), ("cuMemcpyHtoD_v2", b, here), ("cuMemcpyDtoH_v2", here, a),
    ("cuMemcpy", b, here), ("cuMemcpy", here, a), ("cuMemcpyPeer", b, a),
):
    for asynchronous in (False, True):
        put(a, data[: SMALL])
        put(b, bytes(SMALL))
        ctypes.memmove(host, data, SMALL)
        if to == here:
            ctypes.memset(host, 0, SMALL)
        whole = name.replace("_v2", "Async_v2" if asynchronous else "_v2")
        whole += "Async" if asynchronous and "_v2" not in name else ""
        between = [context, c_uint64(source + at), context] if "Peer" in name else [c_uint64(source + at)]
        run(whole, asynchronous, c_uint64(to + at), *between, linear)
        got = host.raw[: SMALL] if to == here else get(to, SMALL)
        assert got == bytes(at) + data[at : at + n] + bytes(SMALL - at - n), whole

for bits, kind in ((8, c_ubyte), (16, ctypes.c_ushort), (32, c_uint)):
    size = bits // 8
    value = data[:size]
    number, count = kind(int.from_bytes(value, "little")), c_size_t(n // size)
    for asynchronous in (False, True):
        put(b, bytes(SMALL))
        name = f"cuMemsetD{bits}" + ("Async" if asynchronous else "_v2")
        run(name, asynchronous, c_uint64(b + at), number, count)
        assert get(b, SMALL) == (bytes(at) + n // size * value).ljust(SMALL, bytes(1)), name
        # Rows with a gap of 64 bytes, 36 of them: more than fits at once.
        put(big, bytes(BIG))
        name = f"cuMemsetD2D{bits}" + ("Async" if asynchronous else "_v2")
        width = c_size_t((ROW - 64) // size)
        run(name, asynchronous, c_uint64(big + at), c_size_t(ROW), number, width, c_size_t(36))
        row = (ROW - 64) // size * value + bytes(64)
        assert get(big, BIG) == (bytes(at) + 36 * row).ljust(BIG, bytes(1)), name

def rows(shape, kinds, to, source, width, height, depth):
    shape.srcMemoryType, shape.dstMemoryType = kinds
    shape.srcHost, shape.srcDevice = (source, 0) if kinds[0] == HOST else (0, source)
    shape.dstHost, shape.dstDevice = (to, 0) if kinds[1] == HOST else (0, to)
    shape.srcXInBytes, shape.dstXInBytes = 16, 32
    shape.srcY, shape.dstY = 1, 2
    shape.srcPitch = shape.dstPitch = ROW
    shape.WidthInBytes, shape.Height = width, height
    if isinstance(shape, Memcpy3D):
        shape.srcZ, shape.dstZ, shape.Depth = 1, 1, depth
        shape.srcHeight = shape.dstHeight = 10
        if "Peer" in name:
            shape.reserved0 = shape.reserved1 = context.value
    return shape

for name, make in (("cuMemcpy2D", Memcpy2D), ("cuMemcpy2DUnaligned", Memcpy2D), ("cuMemcpy3D", Memcpy3D),
                   ("cuMemcpy3DPeer", Memcpy3D)):
    for asynchronous in (False, True):
        if asynchronous and "Unaligned" in name:
            continue
        for kinds in ((HOST, DEVICE), (DEVICE, HOST), (UNIFIED, DEVICE)):
            ctypes.memmove(host, data, BIG)
            put(big, data if kinds[0] == DEVICE else bytes(BIG))
            source = here if kinds[0] != DEVICE else big
            to = big if kinds[1] == DEVICE else here
            if to == here:
                ctypes.memset(host, 0, BIG)
            width, height, depth = ROW - 64, 36, 1
            if make is Memcpy3D:
                height, depth = 7, 3
            shape = rows(make(), kinds, to, source, width, height, depth)
            whole = name + ("Async" if asynchronous else "") + ("" if "Peer" in name else "_v2")
            run(whole, asynchronous, byref(shape))
            expected = bytearray(BIG)
            for z in range(depth):
                for y in range(height):
                    slice = 10 * ROW * (z + 1) if make is Memcpy3D else 0
                    here_, there = slice + ROW * (y + 2) + 32, slice + ROW * (y + 1) + 16
                    expected[here_ : here_ + width] = data[there : there + width]
            got = host.raw if to == here else get(big, BIG)
            assert got == bytes(expected), (whole, kinds)
"""
)


@pytest.mark.parametrize(("streams", "late"), [("--legacy", "1"), ("--per-thread", "0")])
def test_every_form_of_copies_and_memsets(runner: Runner, streams: str, late: str) -> None:
    flags = "--chunk 2MiB --vram 16MiB --ram 16MiB --spill {dir}/spill:128MiB"
    right(runner, FORMS, streams, flags=flags, SOFTCUDA_LATE=late)


ATTRIBUTES = (
    PAGED
    + """
s = stream()
host = (c_uint * MIB)(*[8] * MIB)
attribute = struct.pack("<6i", 1, 0, 0, 0, 0, 0)
call("cuMemcpyWithAttributesAsync", c_uint64(a + 3 * MIB), c_uint64(ctypes.addressof(host)),
     c_size_t(4 * MIB), attribute, s)
call("cuStreamSynchronize", s)
evict()
assert read(a + 3 * MIB) == read(a + 7 * MIB - 4) == 8
"""
)


def test_a_copy_with_attributes_is_split_at_chunks(runner: Runner) -> None:
    right(runner, ATTRIBUTES)


PEERS = (
    BEGIN
    + """
from tests.shim.softcuda.driver import Memcpy2D
DEVICE = 2
can = c_int(1)
call("cuDeviceCanAccessPeer", byref(can), 0, 1)
assert can.value == 0
can = c_int(1)
call("cuDeviceGetP2PAttribute", byref(can), 2, 0, 1)
assert can.value == 0
contexts = [use(0), use(1)]
sets = []
for context in contexts:
    call("cuCtxSetCurrent", context)
    sets.append([alloc(16 * MIB) for _ in range(5)])
pattern = [(c_uint * (4 * MIB))(*range(i, i + 4 * MIB)) for i in (1, 2)]
for context, blocks, data in zip(contexts, sets, pattern):
    call("cuCtxSetCurrent", context)
    for at in blocks:
        call("cuMemcpyHtoD_v2", c_uint64(at), data, c_size_t(16 * MIB))
# Every way to copy from one to the other, with either's context current; both overflow.
n = c_size_t(16 * MIB)
for turn, current in enumerate(contexts):
    call("cuCtxSetCurrent", current)
    s = stream()
    for to, source, at in zip(sets[0], sets[1], range(5)):
        dst, src = c_uint64(to), c_uint64(source)
        fill(to, 4, 0)
        call("cuCtxSynchronize")  # the copy's stream does not wait for that by itself
        [
            lambda: call("cuMemcpyPeer", dst, contexts[0], src, contexts[1], n),
            lambda: call("cuMemcpyPeerAsync", dst, contexts[0], src, contexts[1], n, s),
            lambda: call("cuMemcpy", dst, src, n),
            lambda: call("cuMemcpyDtoD_v2", dst, src, n),
            lambda: call("cuMemcpyAsync", dst, src, n, s),
        ][at]()
        call("cuCtxSynchronize")
        assert (read(to), read(to + 16 * MIB - 4)) == (2, 2 + 4 * MIB - 1), at
        # And back, rows of what a small allocation has, which is the driver's; others stay.
        small = c_uint64()
        call("cuCtxSetCurrent", contexts[1])
        call("cuMemAlloc_v2", byref(small), c_size_t(4096))
        call("cuMemsetD32_v2", small, c_uint(7), c_size_t(1024))
        call("cuCtxSynchronize")
        call("cuCtxSetCurrent", current)
        for source, width in ((small.value, 64), (sets[1][1], 64), (sets[1][1], 256)):
            shape = Memcpy2D(srcMemoryType=DEVICE, dstMemoryType=DEVICE, srcDevice=source, dstDevice=to)
            shape.srcPitch = shape.dstPitch = 256
            shape.srcXInBytes, shape.dstXInBytes = (0, 256 - width) if source == small.value else (0, 0)
            shape.WidthInBytes, shape.Height = width, 16
            call("cuMemcpy2DAsync_v2", byref(shape), s)
            call("cuCtxSynchronize")
            first = 7 if source == small.value else 2
            last = 7 if source == small.value else 2 + (15 * 256 + width) // 4 - 1
            end = to + 15 * 256 + shape.dstXInBytes + width
            assert (read(to + shape.dstXInBytes), read(end - 4)) == (first, last), (at, width)
        # More than fits at once, every other half of a row; more than a row is as wide.
        shape = Memcpy2D(srcMemoryType=DEVICE, dstMemoryType=DEVICE, srcDevice=sets[1][2], dstDevice=to)
        shape.srcPitch = shape.dstPitch = MIB // 2
        shape.WidthInBytes, shape.Height = MIB // 4, 32
        fill(to, 16 * MIB, 0)
        call("cuCtxSynchronize")
        call("cuMemcpy2DAsync_v2", byref(shape), s)
        call("cuCtxSynchronize")
        words = MIB // 4  # of four bytes a MiB
        assert [read(to + at) for at in (0, MIB // 4 - 4, MIB // 4, 15 * MIB + MIB // 2)] == [
            2, 2 + words // 4 - 1, 0, 2 + 15 * words + words // 2
        ]
        shape.WidthInBytes = MIB
        assert cuda.cuMemcpy2DAsync_v2(byref(shape), s) == 1
        call("cuMemcpyDtoDAsync_v2", small, dst, c_size_t(4096), s)
        call("cuCtxSynchronize")
        assert read(small.value + 4092) == 2 + 1023
        call("cuMemFree_v2", small)
    # To and from the host, of memory that is not the current context's device's.
    for context, blocks, value in zip(contexts, sets, (1, 2)):
        host = (c_uint * 1024)(*range(1024))
        call("cuMemcpyHtoDAsync_v2", c_uint64(blocks[0] + 4), host, c_size_t(4096), s)
        call("cuMemsetD32Async", c_uint64(blocks[0] + 8), c_uint(5), c_size_t(1), s)
        got = (c_uint * 1025)()
        call("cuMemcpyDtoHAsync_v2", got, c_uint64(blocks[0]), c_size_t(4100), s)
        call("cuCtxSynchronize")
        assert list(got[1:4]) == [0, 5, 2] and got[1024] == 1023
        call("cuMemcpyHtoD_v2", c_uint64(blocks[0]), pattern[value - 1], c_size_t(4100))
        assert (read(blocks[0]), read(blocks[0] + 4096)) == (value, value + 1024)
got = c_int()
for device, blocks in enumerate(sets):
    for at in blocks:
        call("cuPointerGetAttribute", byref(got), 9, c_uint64(at))
        assert got.value == device
"""
)


# A stream's work stays in order, whichever device it is of and whatever it copies; the host waits
# for it only where it says so. Host memory that is pinned, so that no copy has to wait by itself.
ORDER = (
    BEGIN
    + """
contexts = [use(0), use(1)]
sets, streams = [], []
for context in contexts:
    call("cuCtxSetCurrent", context)
    sets.append([alloc(16 * MIB) for _ in range(4)])
    streams.append(stream())
    for at in sets[-1]:
        fill(at, 16 * MIB, 3)
    call("cuCtxSynchronize")
here, there = sets
host, n = c_void_p(), c_size_t(16 * MIB)
call("cuMemHostAlloc", byref(host), n, 1)
for current in contexts:
    for s, form in ((streams[0], ""), (streams[1], ""), (None, ""), (None, "_ptsz")):
        call("cuCtxSetCurrent", current)
        for k in range(4):
            ctypes.memset(host, 0, 16 * MIB)
            a, b = c_uint64(here[k]), c_uint64(there[k])
            call("cuMemsetD8Async" + form, b, c_ubyte(10 + k), n, s)
            call("cuMemcpyDtoDAsync_v2" + form, a, b, n, s)
            call("cuMemsetD8Async" + form, b, c_ubyte(99), n, s)
            call("cuMemcpyDtoHAsync_v2" + form, host, a, n, s)
            now = c_void_p()
            call("cuCtxGetCurrent", byref(now))
            assert now.value == current.value
            call("cuStreamSynchronize" + form, s)
            assert ctypes.string_at(host, 16 * MIB) == bytes([10 + k]) * (16 * MIB), (s, form, k)
        # Not behind a stream, but done when it returns.
        ctypes.memset(host, 0, 16 * MIB)
        call("cuMemcpyDtoH_v2", host, c_uint64(there[3]), n)
        assert ctypes.string_at(host, 16 * MIB) == bytes([99]) * (16 * MIB)
"""
)


@pytest.mark.parametrize("vram", ["40MiB", "120MiB"])
def test_streams_keep_their_order_across_devices(runner: Runner, vram: str) -> None:
    flags = f"--chunk 2MiB --vram {vram} --ram 192MiB"
    right(runner, ORDER, flags=flags, SOFTCUDA_DEVICES="2", SOFTCUDA_VRAM="160MiB")


# All is resident, and nobody looks. Then one device needs room for more, while a copy in the other's
# context reads or writes its memory.
UNSEEN = (
    BEGIN
    + """
form, writes = sys.argv[1], sys.argv[2] == "writes"
contexts = [use(0), use(1)]
there = alloc(16 * MIB)
fill(there, 16 * MIB, 9)
s = stream()
call("cuCtxSynchronize")
call("cuCtxSetCurrent", contexts[0])
here = alloc(16 * MIB)
fill(here, 16 * MIB, 2)
call("cuCtxSynchronize")
call("cuCtxSetCurrent", contexts[1])
to, source = (here, there) if writes else (there, here)
of = contexts if writes else contexts[::-1]
if form == "peer":
    call("cuMemcpyPeerAsync", c_uint64(to), of[0], c_uint64(source), of[1], c_size_t(16 * MIB), s)
else:
    call("cuMemcpyDtoDAsync_v2", c_uint64(to), c_uint64(source), c_size_t(16 * MIB), s)
call("cuCtxSetCurrent", contexts[0])
others = [alloc(16 * MIB) for _ in range(4)]
for _ in range(2):
    for at in others:
        fill(at, 16 * MIB, 1)
call("cuCtxSynchronize")
call("cuCtxSetCurrent", contexts[1])
call("cuStreamSynchronize", s)
assert read(to) == read(to + 16 * MIB - 4) == (0x09090909 if writes else 0x02020202)
print("right")
"""
)


@pytest.mark.parametrize("way", ["writes", "reads"])
@pytest.mark.parametrize("form", ["peer", "dtod"])
def test_a_copy_of_another_context_is_over_before_memory_leaves(runner: Runner, form: str, way: str) -> None:
    flags = "--chunk 2MiB --vram 40MiB --ram 128MiB"
    result = runner.tiered(
        *(flags, "-c", UNSEEN, form, way), SOFTCUDA_DEVICES="2", SOFTCUDA_VRAM="160MiB", SOFTCUDA_LATE="1"
    )
    assert (result.status, result.out) == (0, "right\n"), result.err


@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("vram", ["14MiB", "40MiB", "120MiB"])
def test_two_devices_copy_to_each_other(runner: Runner, vram: str, late: str) -> None:
    """In both contexts, with room for all or not. That kernels of one reach the other is denied."""
    flags = f"--chunk 2MiB --vram {vram} --ram 64MiB --spill {{dir}}/spill:256MiB"
    devices = {"SOFTCUDA_DEVICES": "2", "SOFTCUDA_VRAM": "160MiB"}
    right(runner, PEERS, flags=flags, SOFTCUDA_LATE=late, **devices)
