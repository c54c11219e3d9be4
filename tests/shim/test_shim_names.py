# SPDX-License-Identifier: GPL-2.0-or-later
"""What launches, copies and nodes of graphs name is there, and what they cannot have is refused."""

from __future__ import annotations

import pytest

from .pieces import BEGIN, SMALL, VIEW
from .tiers import Runner

BARE_KERNEL = (
    BEGIN
    + """
library, kernel, address = c_void_p(), c_void_p(), c_uint64()
assert cuda.cuLibraryLoadData(byref(library), b"softcuda", None, None, 0, None, None, 0) == 0
assert cuda.cuLibraryGetKernel(byref(kernel), library, sys.argv[1].encode()) == 0
for i in range(12):  # more than VRAM: launches are looked at
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(4 << 20)) == 0
    assert cuda.cuMemsetD8_v2(address, 1, c_size_t(4 << 20)) == 0
assert cuda.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, None, (c_void_p * 1)(), None) == 0
assert cuda.cuCtxSynchronize() == 0
"""
)


def test_a_kernel_without_parameters_is_no_riddle(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", BARE_KERNEL, "noop")
    assert result.status == 0, result.err
    assert result.counters["launches"] == 1
    assert "parameters" not in result.err


TOO_MUCH = """
import sys
from ctypes import c_uint64
from tests.shim.softcuda.driver import MIB, CudaError, Driver

cuda = Driver("libcuda.so.1")
times, ran = int(sys.argv[1]), []
firsts = [cuda.alloc(32 * MIB) for _ in range(3)]
lasts = [first + 32 * MIB - 4 for first in firsts]
for first, last in zip(firsts, lasts):
    cuda("cuMemsetD8_v2", c_uint64(first), 1, 1)
    # The last word is a start that is named: each allocation's object is known to reach there.
    cuda("cuMemsetD8_v2", c_uint64(last), 1, 4)
kernel = cuda.register("kernel", ran.append, *[8] * 3 * times)
cuda.launch(kernel, *map(c_uint64, lasts * times))
cuda("cuCtxSynchronize")
try:
    cuda.launch(kernel, *map(c_uint64, firsts * times))
except CudaError as error:
    print(error.code)
cuda("cuCtxSynchronize")
print(len(ran))
"""


@pytest.mark.parametrize("times", [1, 3])
def test_a_launch_that_never_fits_is_refused_before_it_starts(runner: Runner, times: int) -> None:
    """And how much it names is said right, also if it names it several times."""
    result = runner.tiered(SMALL, "-c", TOO_MUCH, str(times))
    assert result.status == 0, result.err
    assert result.out.split() == ["2", "1"]
    assert "needs at least 96 MiB at once, and 40 MiB of chunks fit VRAM; RAM has no room" in result.err


SCATTERED = """
from ctypes import c_uint64
from tests.shim.softcuda.driver import MIB, CudaError, Driver

cuda = Driver("libcuda.so.1")
kernel = cuda.register("kernel", lambda params: None, *[8] * 12)
try:
    cuda.launch(kernel, *(c_uint64(cuda.alloc(3 * MIB // 2)) for _ in range(12)))
except CudaError as error:
    print(error.code)
"""


def test_a_refused_launch_needs_whole_chunks(runner: Runner) -> None:
    """The first four are less than a chunk and fit: they are the driver's own, and not counted."""
    tiers = "--chunk 2MiB --vram 12MiB --ram 8MiB --spill {dir}/spill:64MiB"
    result = runner.tiered(tiers, "-c", SCATTERED)
    assert (result.status, result.out) == (0, "2\n"), result.err
    assert "needs at least 16 MiB at once, and 6 MiB of chunks fit VRAM" in result.err


UNEVEN = """
import ctypes
from ctypes import c_uint32, c_uint64
import numpy as np
from tests.shim.softcuda.driver import MIB, Driver

cuda = Driver("libcuda.so.1")
WORDS = 12 * MIB // 4

def words(address, count):
    return np.ctypeslib.as_array((c_uint32 * count).from_address(address))

def spread(params):
    big, *small = (c_uint64.from_address(params[i]).value for i in range(5))
    words(big, WORDS)[:] += sum(int(words(s, 1)[0]) for s in small)

fill, spread = cuda.function("fill_u32"), cuda.register("spread", spread, *[8] * 5)
pool, other = cuda.alloc(48 * MIB), cuda.alloc(40 * MIB)
# One of six chunks, then four of one; nothing is ever copied there, so no end is known.
objects = [pool + n * 2 * MIB for n in (0, 6, 7, 8, 9)]
for value in range(3):
    for n, address in enumerate(objects):
        cuda.launch(fill, c_uint64(address), c_uint64(16 if n else WORDS), c_uint32(n))
    cuda("cuMemsetD32_v2", c_uint64(other), value, 40 * MIB // 4)
    cuda.launch(spread, *map(c_uint64, objects))
    got = np.frombuffer(cuda.read(pool, WORDS * 4), np.uint32)
    assert (got == 1 + 2 + 3 + 4).all(), got
print("right")
"""


def test_what_launches_named_ends_guesses_where_room_is_short(runner: Runner) -> None:
    """Of five guesses as wide as each other, the one that needs six chunks of eleven would get four."""
    result = runner.tiered(SMALL.replace("40MiB", "22MiB"), "-c", UNEVEN)
    assert (result.status, result.out) == (0, "right\n"), result.err


WHOLE = (
    VIEW
    + """
import sys
assert cuda.cuMemAlloc_v2(byref(a), c_size_t(16 * MIB)) == 0
if "copied" in sys.argv:
    assert cuda.cuMemsetD8_v2(a, ctypes.c_ubyte(2), c_size_t(16 * MIB)) == 0
assert cuda.cuMemsetD8_v2(c_uint64(a.value + 8 * MIB), ctypes.c_ubyte(2), c_size_t(8 * MIB)) == 0
fill(a.value + 8 * MIB, 1, 3)
evict()
fill(a.value, 4 * MIB, 4)
evict()
print({read(a.value + at) for at in range(0, 16 * MIB, MIB)})
"""
)


@pytest.mark.parametrize("filled", ["copied", "by-kernels"])
def test_a_view_that_is_filled_and_used_leaves_its_tensor_whole(runner: Runner, filled: str) -> None:
    result = runner.tiered(SMALL, "-c", WHOLE, filled)
    assert (result.status, result.out) == (0, "{4}\n"), result.err


FAR = (
    VIEW
    + """
assert cuda.cuMemAlloc_v2(byref(a), c_size_t(96 * MIB)) == 0
assert cuda.cuMemsetD8_v2(a, ctypes.c_ubyte(2), c_size_t(96 * MIB)) == 0
fill(a.value, 1, 3)
evict()
fill(a.value + 60 * MIB, 4 * MIB, 4)
print({read(a.value + at) for at in range(60 * MIB, 76 * MIB, MIB)})
"""
)


def test_of_what_is_larger_than_vram_the_part_behind_the_address_is_there(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", FAR)
    assert (result.status, result.out) == (0, "{4}\n"), result.err


NODES = (
    VIEW
    + """
import struct
KERNEL, MEMCPY, MEMSET = range(3)
kept = []

def keep(object):
    kept.append(object)
    return object

def kernel(at, value):
    params = keep((c_uint64(at), c_uint64(MIB), ctypes.c_uint(value)))
    pointers = keep((c_void_p * 3)(*(ctypes.addressof(p) for p in params)))
    return struct.pack("<Q7I4xQQQQ", function.value, *6 * [1], 0, ctypes.addressof(pointers), 0, 0, 0)

def memcpy(at, value):
    data = keep((ctypes.c_uint * MIB)(*[value] * MIB))
    src = struct.pack("<4Qi4x6Q", 0, 0, 0, 0, 1, ctypes.addressof(data), 0, 0, 0, 4 * MIB, 1)
    return src + struct.pack("<4Qi4x6Q3Q", 0, 0, 0, 0, 2, 0, at, 0, 0, 4 * MIB, 1, 4 * MIB, 1, 1)

def memset(at, value):
    return struct.pack("<QQIIQQ", at, 0, value, 4, MIB, 1)

MAKE = [kernel, memcpy, memset]

def any_type(type, params):
    if type == MEMCPY:
        params = struct.pack("<iiQ", 0, 0, 0) + params
    elif type == MEMSET:
        params += bytes(8)
    return struct.pack("<4i", type, 0, 0, 0) + params.ljust(8 * 29, bytes(1)) + bytes(8)

def call(name, *args):
    assert getattr(cuda, name)(*args) == 0, name

def add(form, graph, type, params):
    node = c_void_p()
    if form in ("cuGraphAddNode", "cuGraphAddNode_v2"):
        edges = [None] if form == "cuGraphAddNode_v2" else []
        call(form, byref(node), graph, None, *edges, c_size_t(0), any_type(type, params))
    else:
        more = [context] if type != KERNEL else []
        call(form, byref(node), graph, None, c_size_t(0), params, *more)
    return node

PLAIN = ["cuGraphAddKernelNode_v2", "cuGraphAddMemcpyNode", "cuGraphAddMemsetNode"]
ADD = [("cuGraphAddKernelNode", KERNEL)]
ADD += [(name, type) for name in ("cuGraphAddNode", "cuGraphAddNode_v2") for type in range(3)]
SET = [("cuGraphKernelNodeSetParams", KERNEL), ("cuGraphMemcpyNodeSetParams", MEMCPY)]
SET += [("cuGraphMemsetNodeSetParams", MEMSET), *(("cuGraphNodeSetParams", type) for type in range(3))]

def run(name, type, how):
    at, value = c_uint64(), len(kept) + 3
    call("cuMemAlloc_v2", byref(at), c_size_t(4 * MIB))
    call("cuMemsetD8_v2", at, ctypes.c_ubyte(1), c_size_t(4 * MIB))
    other = c_uint64()
    call("cuMemAlloc_v2", byref(other), c_size_t(4 * MIB))
    evict()
    graph, exec = c_void_p(), c_void_p()
    call("cuGraphCreate", byref(graph), 0)
    node = add(name if how == "add" else PLAIN[type], graph, type,
               MAKE[type]((at if how == "add" else other).value, value))
    params = MAKE[type](at.value, value)
    if name in ("cuGraphNodeSetParams", "cuGraphExecNodeSetParams"):
        params = any_type(type, params)
    if how == "set":
        call(name, node, params)
    call("cuGraphInstantiateWithFlags", byref(exec), graph, c_uint64(0))
    if how == "exec":
        more = [context] if "Mem" in name else []
        call(name, exec, node, params, *more)
    evict()
    call("cuGraphLaunch", exec, None)
    call("cuCtxSynchronize")
    assert read(at.value) == read(at.value + 4 * MIB - 4) == value, name
    call("cuGraphExecDestroy", exec)
    for address in (at, other):
        call("cuMemFree_v2", address)

for name, type in ADD:
    run(name, type, "add")
for name, type in SET:
    run(name, type, "set")
    run(name.replace("cuGraph", "cuGraphExec"), type, "exec")
print("right")
"""
)


def test_every_way_to_make_a_node_is_seen(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", NODES)
    assert (result.status, result.out) == (0, "right\n"), result.err


OTHER_COPIES = (
    VIEW
    + """
import struct, sys
assert cuda.cuMemAlloc_v2(byref(a), c_size_t(16 * MIB)) == 0
assert cuda.cuMemsetD8_v2(a, ctypes.c_ubyte(1), c_size_t(16 * MIB)) == 0
evict()
stream = c_void_p()
assert cuda.cuStreamCreate(byref(stream), 1) == 0
at, array, n = a.value, c_void_p(1), c_size_t(16 * MIB)
host = (ctypes.c_uint * (4 * MIB))(*[6] * (4 * MIB))

def operand(kind, pointer):
    return struct.pack("<i4x3Qii", kind, pointer, 0, 0, 0, 0)

def batch(source):
    return operand(source, ctypes.addressof(host)) + operand(1, at) + struct.pack("<3Qii", MIB, 16, 1, 1, 0)

def peer():
    src = struct.pack("<4Qi4x3QQ2Q", 0, 0, 0, 0, 1, ctypes.addressof(host), 0, 0, context.value, MIB, 16)
    dst = struct.pack("<4Qi4x3QQ2Q", 0, 0, 0, 0, 2, 0, at, 0, context.value, MIB, 16)
    return src + dst + struct.pack("<3Q", MIB, 16, 1)

zero = c_uint64(0)
print({
    "none": lambda: None,
    "AtoD": lambda: cuda.cuMemcpyAtoD_v2(a, array, c_size_t(0), n),
    "DtoA": lambda: cuda.cuMemcpyDtoA_v2(array, c_size_t(0), a, n),
    "batch": lambda: cuda.cuMemcpy3DBatchAsync(c_size_t(1), batch(1), byref(n), zero, stream),
    "batch2": lambda: cuda.cuMemcpy3DBatchAsync_v2(c_size_t(1), batch(1), zero, stream),
    "array": lambda: cuda.cuMemcpy3DBatchAsync_v2(c_size_t(1), batch(2), zero, stream),
    "peer": lambda: cuda.cuMemcpy3DPeer(peer()),
    "peer2": lambda: cuda.cuMemcpy3DPeerAsync(peer(), stream),
}[sys.argv[1]]())
assert cuda.cuCtxSynchronize() == 0
if "peer" in sys.argv[1]:
    assert read(at) == read(at + 16 * MIB - 4) == 6
"""
)


@pytest.mark.parametrize("name", ["AtoD", "DtoA", "batch", "batch2", "peer", "peer2", "array"])
def test_copies_by_rare_calls_name_what_they_touch(runner: Runner, name: str) -> None:
    """The software device has no arrays and no 3D batches: it must have been asked all the same."""
    seen = []
    for which in ("none", name):
        result = runner.tiered(SMALL, "-c", OTHER_COPIES, which)
        assert result.status == 0, result.err
        seen.append(result.counters["chunk_hits"] + result.counters["chunk_stalls"])
    if name == "array":  # whose elements are of a size that only the driver knows
        assert (result.out, seen[1]) == ("801\n", seen[0])
        assert "greenboost: cuMemcpy3DBatchAsync" in result.err
    elif "peer" in name:
        assert (result.out, seen[1]) == ("0\n", seen[0] + 8 + 2)
    else:
        assert (result.out, seen[1]) == ("801\n", seen[0] + 8)
        assert "greenboost: cu" not in result.err


DURING = (
    VIEW
    + """
import struct
assert cuda.cuMemAlloc_v2(byref(a), c_size_t(16 * MIB)) == 0
evict()
stream, pinned, spin = c_void_p(), c_void_p(), c_void_p()
assert cuda.cuStreamCreate(byref(stream), 1) == 0
assert cuda.cuMemAllocHost_v2(byref(pinned), c_size_t(16 * MIB)) == 0
assert cuda.cuModuleGetFunction(byref(spin), module, b"spin_ns") == 0
order = [struct.pack("<6i", order, 0, 0, 0, 0, 0) for order in (1, 2)]
firsts = (c_size_t * 2)(0, 1)
dsts, srcs = (c_uint64 * 3)(a.value, a.value + 4, a.value + 8), (c_uint64 * 3)()
for i in range(3):
    srcs[i] = pinned.value + 4 * i
sizes = (c_size_t * 3)(4, 4, 4)
for call, extra in (("cuMemcpyBatchAsync", [byref(c_size_t())]), ("cuMemcpyBatchAsync_v2", [])):
    ctypes.memset(pinned, 1, 12)
    time = c_uint64(200_000_000)
    pointers = (c_void_p * 1)(ctypes.addressof(time))
    assert cuda.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, pointers, None) == 0
    rest = [c_size_t(3), order[0] + order[1], firsts, c_size_t(2), *extra, stream]
    assert getattr(cuda, call)(dsts, srcs, sizes, *rest) == 0
    ctypes.memset(pinned, 2, 12)
    assert cuda.cuStreamSynchronize(stream) == 0
    print([read(a.value + 4 * i) & 3 for i in range(3)])
"""
)


def test_of_a_batch_what_is_to_be_read_at_once_is(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", DURING)
    assert (result.status, result.out) == (0, 2 * "[2, 1, 1]\n"), result.err
