# SPDX-License-Identifier: GPL-2.0-or-later
"""The rarer calls of the driver, given memory that is paged, as docs/cuda-surface.md says of them."""

from __future__ import annotations

import pytest

from .pieces import SMALL
from .tiers import Runner

BEGIN = """
import ctypes, struct, sys
from ctypes import byref, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
MIB = 1 << 20
cuda = ctypes.CDLL("libcuda.so.1")

def call(name, *args):
    result = getattr(cuda, name)(*args)
    assert result == 0, (name, result)

def use(device):
    context = c_void_p()
    call("cuDevicePrimaryCtxRetain", byref(context), device)
    call("cuCtxSetCurrent", context)
    return context

def alloc(size):
    address = c_uint64()
    call("cuMemAlloc_v2", byref(address), c_size_t(size))
    return address.value

def fill(at, size, value):
    call("cuMemsetD8_v2", c_uint64(at), c_ubyte(value), c_size_t(size))

def read(at):
    got = c_uint()
    call("cuMemcpyDtoH_v2", byref(got), c_uint64(at), c_size_t(4))
    return got.value

def stream():
    made = c_void_p()
    call("cuStreamCreate", byref(made), 1)
    return made

def function(name):
    found = c_void_p()
    call("cuModuleGetFunction", byref(found), module, name)
    return found

def launch(kernel, *params, stream=None):
    pointers = (c_void_p * len(params))(*(ctypes.addressof(p) for p in params))
    call("cuLaunchKernel", kernel, 1, 1, 1, 1, 1, 1, 0, stream, pointers, None)

def evict():
    for at in others:
        fill(at, 16 * MIB, 1)

call("cuInit", 0)
context = use(0)
module = c_void_p()
call("cuModuleLoadData", byref(module), b"softcuda")
"""

PAGED = (
    BEGIN
    + """
others = [alloc(16 * MIB) for _ in range(4)]
a = alloc(16 * MIB)
fill(a, 16 * MIB, 2)
evict()
"""
)


def right(runner: Runner, program: str, *argv: object, flags: str = SMALL, **environment: str) -> str:
    """What the program said on stderr, that ended well and printed "right"."""
    result = runner.tiered(flags, "-c", program + '\nprint("right")\n', *argv, timeout=120, **environment)
    assert (result.status, result.out) == (0, "right\n"), result.err
    return "\n".join(line for line in result.err.splitlines() if line.startswith("greenboost: "))


VALUES = (
    PAGED
    + """
late, other = stream(), stream()
for form in ("", "_v2"):
    for bits, kind in ((32, c_uint), (64, c_uint64)):
        evict()
        write, wait = f"cuStreamWriteValue{bits}{form}", f"cuStreamWaitValue{bits}{form}"
        if form == "" and getattr(cuda, write)(late, c_uint64(a + 8), kind(7), 0) == 801:
            continue  # the software device has the newer form alone
        call(wait, late, c_uint64(a + 8 * MIB), kind(5), 1)
        call(write, late, c_uint64(a + 12 * MIB), kind(6), 0)
        evict()  # what is waited for and what is to be written stays meanwhile
        call(write, other, c_uint64(a + 8 * MIB), kind(5), 0)
        call("cuStreamSynchronize", other)
        call("cuStreamSynchronize", late)
        evict()
        assert (read(a + 8 * MIB), read(a + 12 * MIB)) == (5, 6)
        fill(a, 16 * MIB, 2)

def op(kind, at, value):
    return struct.pack("<i4xQQI4xQ8x", kind, at, value, 0, 0)

ops = op(2, a, 11) + op(5, a + 15 * MIB, 12) + op(6, 0, 0)
for name in ("cuStreamBatchMemOp", "cuStreamBatchMemOp_v2"):
    fill(a, 16 * MIB, 2)
    evict()
    call(name, late, 3, ops, 0)
    call("cuStreamSynchronize", late)
    assert (read(a), read(a + 15 * MIB)) == (11, 12)

# In graphs, made by hand and captured: they stay.
for how in ("node", "any", "captured"):
    at = alloc(4 * MIB)
    fill(at, 4 * MIB, 2)
    evict()
    graph, exec, node = c_void_p(), c_void_p(), c_void_p()
    one = op(2, at + 2 * MIB, 13)
    kept = ctypes.create_string_buffer(one, 48)
    params = struct.pack("<QI4xQI4x", context.value, 1, ctypes.addressof(kept), 0)
    if how == "captured":
        call("cuStreamBeginCapture_v2", late, 2)
        call("cuStreamWriteValue32_v2", late, c_uint64(at + 2 * MIB), 13, 0)
        call("cuStreamEndCapture", late, byref(graph))
    else:
        call("cuGraphCreate", byref(graph), 0)
        if how == "node":
            call("cuGraphAddBatchMemOpNode", byref(node), graph, None, c_size_t(0), params)
        else:
            any = struct.pack("<4i", 12, 0, 0, 0) + params.ljust(8 * 29, b"\\0") + bytes(8)
            call("cuGraphAddNode", byref(node), graph, None, c_size_t(0), any)
    call("cuGraphInstantiateWithFlags", byref(exec), graph, c_uint64(0))
    evict()
    call("cuGraphLaunch", exec, late)
    call("cuStreamSynchronize", late)
    assert read(at + 2 * MIB) == 13, how
"""
)


@pytest.mark.parametrize("late", ["0", "1"])
def test_values_that_streams_write_and_wait_for(runner: Runner, late: str) -> None:
    right(runner, VALUES, SOFTCUDA_LATE=late)


TEXTURES = (
    PAGED
    + """
def resource(kind, at, a=0, b=0, c=0):
    return struct.pack("<i4xQiIQQQ88xI4x", kind, at, 3, 1, a, b, c, 0)

out = alloc(4)
texture = c_uint64()
fetch = function(b"texture_u32")
sampling = bytes(64 + 64)
for kind, shape in ((2, (16 * MIB, 0, 0)), (3, (1024, 4096, 4096))):
    at = alloc(16 * MIB)
    fill(at, 16 * MIB, 3)
    evict()
    call("cuTexObjectCreate", byref(texture), resource(kind, at, *shape), sampling, None)
    evict()
    for i in (0, 4 * MIB - 1):
        launch(fetch, texture, c_uint64(i), c_uint64(out))
        assert read(out) == 0x03030303, (kind, i)
# Of 20 chunks 16 stay by now.
at = alloc(16 * MIB)
assert cuda.cuTexObjectCreate(byref(texture), resource(2, at, 16 * MIB), sampling, None) == 2
"""
)


def test_what_a_texture_fetches_from_stays(runner: Runner) -> None:
    said = right(runner, TEXTURES)
    assert "a texture object names 16 MiB, which must stay in VRAM" in said


MAPS = (
    PAGED
    + """
out = alloc(4)
room = ctypes.create_string_buffer(256)
aligned = (ctypes.addressof(room) + 127) & ~127
tile = (c_uint64 * 16).from_address(aligned)
dims, one = (c_uint64 * 1)(4 * MIB), (c_uint * 1)(1)
call("cuTensorMapEncodeTiled", c_void_p(aligned), 3, 1, c_void_p(a), dims, None, one, one, 0, 0, 0, 0)
evict()
launch(function(b"tile_u32"), tile, c_uint64(4 * MIB - 1), c_uint64(out))
assert read(out) == 0x02020202
b = alloc(4 * MIB)
fill(b, 4 * MIB, 5)
evict()
call("cuTensorMapReplaceAddress", c_void_p(aligned), c_void_p(b))
launch(function(b"tile_u32"), tile, c_uint64(7), c_uint64(out))
assert read(out) == 0x05050505
"""
)


def test_a_tensor_map_names_its_memory(runner: Runner) -> None:
    right(runner, MAPS)


REFUSED = (
    PAGED
    + """
handle = ctypes.create_string_buffer(64)
can, flag, got = c_int(), c_int(1), c_uint64()
print({
    "cuIpcGetMemHandle": lambda: cuda.cuIpcGetMemHandle(handle, c_uint64(a)),
    "cuMemGetHandleForAddressRange": lambda: cuda.cuMemGetHandleForAddressRange(
        handle, c_uint64(a), c_size_t(MIB), 1, c_uint64(0)),
    "cuMulticastBindAddr": lambda: cuda.cuMulticastBindAddr(
        c_uint64(1), c_size_t(0), c_uint64(a), c_size_t(MIB), c_uint64(0)),
    "cuPointerSetAttribute": lambda: cuda.cuPointerSetAttribute(byref(flag), 6, c_uint64(a)),
    "cuMemRetainAllocationHandle": lambda: cuda.cuMemRetainAllocationHandle(byref(got), c_void_p(a)),
    "cuMemGetAccess": lambda: cuda.cuMemGetAccess(byref(got), struct.pack("<2i", 1, 0), c_uint64(a)),
    "cuLaunchGrid": lambda: cuda.cuLaunchGrid(function(b"noop"), 1, 1),
    "cuLaunchCooperativeKernelMultiDevice": lambda: cuda.cuLaunchCooperativeKernelMultiDevice(None, 0, 0),
    "cuCtxEnablePeerAccess": lambda: cuda.cuCtxEnablePeerAccess(context, 0),
}[sys.argv[1]]())
# Whatever was refused has spoiled nothing.
assert read(a) == 0x02020202
"""
)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("cuIpcGetMemHandle", 801, True),
        ("cuMemGetHandleForAddressRange", 801, True),
        ("cuMulticastBindAddr", 801, True),
        ("cuPointerSetAttribute", 801, True),
        ("cuMemRetainAllocationHandle", 1, False),
        ("cuMemGetAccess", 1, False),
        ("cuLaunchGrid", 801, True),
        ("cuLaunchCooperativeKernelMultiDevice", 801, True),
        ("cuCtxEnablePeerAccess", 217, True),
    ],
)
def test_what_cannot_be_had_of_paged_memory_is_refused(
    runner: Runner, name: str, code: int, says: bool
) -> None:
    result = runner.tiered(SMALL, "-c", REFUSED, name)
    assert (result.status, result.out) == (0, f"{code}\n"), result.err
    ours = [line for line in result.err.splitlines() if line.startswith("greenboost: ") and name in line]
    assert len(ours) == says


POOLS = (
    BEGIN
    + """
def pool(device=0, handles=0, most=0):
    made = c_void_p()
    props = struct.pack("<4iQQH54x", 1, handles, 1, device, 0, most, 0)
    call("cuMemPoolCreate", byref(made), props)
    return made

import os
raw = ctypes.CDLL(os.environ["GREENBOOST_CUDA_DRIVER"])

def whose(at):
    # What the driver itself gave away it can free.
    return "driver" if raw.cuMemFreeAsync(at, s) == 0 else "ours"

s = stream()
at, current = c_uint64(), c_void_p()
plain, shared, limited = pool(), pool(handles=1), pool(most=64 * MIB)
call("cuDeviceGetDefaultMemPool", byref(current), 0)
for which, owner in ((plain, "ours"), (current, "ours"), (shared, "driver"), (limited, "driver")):
    call("cuMemAllocFromPoolAsync", byref(at), c_size_t(8 * MIB), which, s)
    assert whose(at) == owner
    if owner == "ours":
        call("cuMemFreeAsync", at, s)
for which, owner in ((shared, "driver"), (plain, "ours")):
    call("cuDeviceSetMemPool", 0, which)
    call("cuMemAllocAsync", byref(at), c_size_t(8 * MIB), s)
    assert whose(at) == owner
# Given to other devices, a pool's memory is the driver's from then on.
access = struct.pack("<3i", 1, 0, 3)
call("cuMemPoolSetAccess", plain, access, c_size_t(1))
call("cuMemAllocAsync", byref(at), c_size_t(8 * MIB), s)
assert whose(at) == "driver"
call("cuMemPoolDestroy", limited)
"""
)


def test_pools_that_promise_more_than_memory_are_the_driver_s(runner: Runner) -> None:
    right(runner, POOLS, flags="--chunk 2MiB --vram 16MiB --ram 64MiB")


ORDER = (
    BEGIN
    + """
s, t = stream(), stream()
spin, put = function(b"spin_ns"), function(b"fill_u32")
flag = alloc(4)
fill(flag, 4, 0)
at, first = c_uint64(), None
call("cuMemAllocAsync", byref(at), c_size_t(8 * MIB), s)
# The stream is stopped until the host lets it go: freeing behind that must not wait.
call("cuStreamWaitValue32_v2", s, c_uint64(flag), 1, 1)
launch(put, at, c_uint64(2 * MIB), c_uint(7), stream=s)
call("cuMemFreeAsync", at, s)
free, total = c_size_t(), c_size_t()
call("cuMemGetInfo_v2", byref(free), byref(total))
before = free.value
assert cuda.cuMemFreeAsync(at, s) == 1  # CUDA_ERROR_INVALID_VALUE: twice
call("cuStreamWriteValue32_v2", t, c_uint64(flag), 1, 0)
call("cuStreamSynchronize", s)
call("cuMemGetInfo_v2", byref(free), byref(total))
assert free.value - before == 8 * MIB, (free.value - before) // MIB

# Out of memory that is only freed and not done with: it is waited for.
size = total.value // 2 // (2 * MIB) * (2 * MIB)
for turn in range(4):
    call("cuMemAllocAsync", byref(at), c_size_t(size), s)
    call("cuMemsetD32Async", at, turn, c_size_t(4), s)
    launch(spin, c_uint64(20_000_000), stream=s)
    call("cuMemFreeAsync", at, s)
call("cuStreamSynchronize", s)

# While another stream captures, as it may: nothing waits for the context.
graph = c_void_p()
call("cuMemAllocAsync", byref(at), c_size_t(8 * MIB), s)
call("cuStreamBeginCapture_v2", t, 2)
call("cuMemFreeAsync", at, s)
assert cuda.cuMemFreeAsync(c_uint64(alloc(8 * MIB)), t) == 801
call("cuStreamEndCapture", t, byref(graph))
"""
)


@pytest.mark.parametrize("late", ["0", "1"])
def test_frees_keep_their_stream_s_order_and_the_host_does_not_wait(runner: Runner, late: str) -> None:
    said = right(runner, ORDER, SOFTCUDA_LATE=late)
    assert said.count("cuMemFreeAsync in a capture") == 1


ROOM = (
    PAGED
    + """
prop = ctypes.create_string_buffer(struct.pack("<4iQB", 1, 0, 1, 0, 0, 1), 64)
handle, at = c_uint64(), c_uint64()
# 40 of the device's 64 MiB are slots by now; what the driver alone can have, as it is compressible, gets
# room among them.
call("cuMemCreate", byref(handle), c_size_t(36 * MIB), prop, c_uint64(0))
evict()
assert read(a + 8 * MIB) == 0x02020202
# But not all: something must be able to move.
other = c_uint64()
assert cuda.cuMemCreate(byref(other), c_size_t(40 * MIB), prop, c_uint64(0)) == 2
call("cuMemRelease", handle)
s = stream()
call("cuMemAllocAsync", byref(at), c_size_t(MIB), s)
evict()
assert read(a + 8 * MIB) == 0x02020202
"""
)


def test_slots_give_way_to_what_only_the_driver_has(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", ROOM + 'print("right")')
    assert (result.status, result.out) == (0, "right\n"), result.err


MANAGED = (
    PAGED
    + """
managed = c_uint64()
call("cuMemAllocManaged", byref(managed), c_size_t(4 * MIB), 1)
flag = c_ubyte()
call("cuPointerGetAttribute", byref(flag), 8, managed)
assert flag.value == 1
words = (c_uint * MIB).from_address(managed.value)
words[0] = words[MIB - 1] = 9
call("cuMemcpyDtoD_v2", c_uint64(a), managed, c_size_t(4 * MIB))
evict()
assert read(a) == read(a + 4 * MIB - 4) == 9
call("cuMemcpy", managed, c_uint64(a + 8 * MIB), c_size_t(4 * MIB))
call("cuCtxSynchronize")
assert words[7] == 0x02020202
"""
)


def test_managed_memory_is_the_driver_s_and_copies_to_and_fro(runner: Runner) -> None:
    right(runner, MANAGED)


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
got = c_int()
for device, blocks in enumerate(sets):
    for at in blocks:
        call("cuPointerGetAttribute", byref(got), 9, c_uint64(at))
        assert got.value == device
"""
)


@pytest.mark.parametrize("late", ["0", "1"])
def test_two_devices_that_overflow_copy_to_each_other(runner: Runner, late: str) -> None:
    """Kernels of one are told that they cannot reach the other's memory."""
    flags = "--chunk 2MiB --vram 40MiB --ram 64MiB --spill {dir}/spill:256MiB"
    right(runner, PEERS, flags=flags, SOFTCUDA_DEVICES="2", SOFTCUDA_LATE=late)


FORKED = (
    PAGED
    + """
import os
child = os.fork()
if not child:
    # CUDA does not survive a fork; it must say so, and not hang or take the parent's memory.
    got = c_uint64()
    codes = {cuda.cuMemAlloc_v2(byref(got), c_size_t(4 * MIB)), cuda.cuMemFree_v2(c_uint64(a)),
             cuda.cuMemcpyDtoH_v2(byref(got), c_uint64(a), c_size_t(4))}
    os._exit(0 if 0 not in codes else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
evict()
assert read(a) == 0x02020202
"""
)


def test_a_fork_leaves_the_parent_alone(runner: Runner) -> None:
    right(runner, FORKED)
