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
call("cuCtxSynchronize")  # t does not wait for the null stream
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
