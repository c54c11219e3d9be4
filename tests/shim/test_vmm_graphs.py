# SPDX-License-Identifier: GPL-2.0-or-later
"""Graphs over memory that programs map themselves, which comes and goes under the same addresses."""

from __future__ import annotations

import pytest

from .test_vmm import right
from .tiers import Runner

GRAPHS = """
module, function, add = c_void_p(), c_void_p(), c_void_p()
call("cuModuleLoadData", byref(module), b"softcuda")
call("cuModuleGetFunction", byref(function), module, b"fill_u32")
call("cuModuleGetFunction", byref(add), module, b"add_u32")
stream, other = c_void_p(), c_void_p()
call("cuStreamCreate", byref(stream), 1)
call("cuStreamCreate", byref(other), 1)

def kernel(f, stream, *params):
    pointers = (c_void_p * len(params))(*(ctypes.addressof(p) for p in params))
    call("cuLaunchKernel", f, 1, 1, 1, 1, 1, 1, 0, stream, pointers, None)

def captured(work):
    graph, exe = c_void_p(), c_void_p()
    call("cuStreamBeginCapture_v2", stream, 2)
    work()
    call("cuStreamEndCapture", stream, byref(graph))
    call("cuGraphInstantiateWithFlags", byref(exe), graph, u64(0))
    return exe
"""

HOLE = """
at = reserve(64 * MIB)
put(at, 10 * MIB, create(10 * MIB))
put(at + 12 * MIB, 18 * MIB, create(18 * MIB))
allow(at, 10 * MIB)
allow(at + 12 * MIB, 18 * MIB)
others = [mapped(16 * MIB)[0] for _ in range(8)]
fill(at, 10 * MIB, 1)
fill(at + 12 * MIB, 18 * MIB, 2)
def work():
    kernel(add, stream, u64(at), u64(at + 12 * MIB), u64(at + 12 * MIB), u64(10 * MIB // 4))
exe = captured(work)
for o in others:
    fill(o, 16 * MIB, 9)
if HOW == "graph":
    call("cuGraphLaunch", exe, stream)
else:
    work()
call("cuStreamSynchronize", stream)
check(at, 10 * MIB, 4)
"""


@pytest.mark.parametrize("how", ["stream", "graph"])
def test_memory_on_both_sides_of_a_hole_within_a_chunk(runner: Runner, how: str) -> None:
    flags = "--chunk 8MiB --vram 64MiB --ram 64MiB --spill {dir}/spill:256MiB"
    right(runner, f"HOW = {how!r}" + GRAPHS + HOLE, flags)


EARLY = """
at = reserve(16 * MIB)
exe = captured(lambda: kernel(function, stream, u64(at), u64(16 * MIB // 4), c_uint(3)))
put(at, 16 * MIB, create(16 * MIB))
allow(at, 16 * MIB)
fill(at, 16 * MIB, 1)
for o in [mapped(16 * MIB)[0] for _ in range(6)]:
    fill(o, 16 * MIB, 9)
call("cuGraphLaunch", exe, stream)
call("cuStreamSynchronize", stream)
check(at, 16 * MIB, 3)
"""


def test_a_graph_may_name_addresses_at_which_memory_comes_later(runner: Runner) -> None:
    right(runner, GRAPHS + EARLY)


WAITS = """
flag = c_void_p()
call("cuMemHostAlloc", byref(flag), c_size_t(4096), 2)
dflag = c_uint64()
call("cuMemHostGetDevicePointer_v2", byref(dflag), flag, 0)
word = ctypes.cast(flag, ctypes.POINTER(c_uint))
word[0] = 0
a, b, c, d = (mapped(16 * MIB)[0] for _ in range(4))
for x in (a, b, c, d):
    fill(x, 16 * MIB, 1)
def work():
    call("cuStreamWaitValue32_v2", stream, dflag, c_uint(1), 0)
    kernel(function, stream, u64(a), u64(16 * MIB // 4), c_uint(3))
if HOW == "graph":
    exe = captured(work)
    call("cuGraphLaunch", exe, stream)
else:
    work()
kernel(function, other, u64(b), u64(16 * MIB // 4), c_uint(4))
call("cuStreamSynchronize", other)
kernel(function, other, u64(c), u64(16 * MIB // 4), c_uint(5))
word[0] = 1
call("cuCtxSynchronize")
check(a, 16 * MIB, 3)
check(b, 16 * MIB, 4)
check(c, 16 * MIB, 5)
"""


@pytest.mark.parametrize("how", ["stream", "graph"])
def test_what_runs_behind_a_value_is_not_waited_for(runner: Runner, how: str) -> None:
    right(runner, f"HOW = {how!r}" + GRAPHS + WAITS)


ANEW = """
at, handle = mapped(8 * MIB)
others = [mapped(16 * MIB)[0] for _ in range(6)]
fill(at, 8 * MIB, 1)
to, other = mapped(8 * MIB)
fill(to, 8 * MIB, 1)
def work():
    call("cuMemsetD32Async", u64(at), c_uint(5), c_size_t(8 * MIB // 4), stream)
    call("cuMemcpyDtoDAsync_v2", u64(to), u64(at), c_size_t(8 * MIB), stream)
    call("cuStreamWriteValue32_v2", stream, u64(to), c_uint(5), 0)
exe = captured(work)
for turn in range(2):
    for o in others:
        fill(o, 16 * MIB, 9)
    call("cuGraphLaunch", exe, stream)
    call("cuStreamSynchronize", stream)
    check(at, 8 * MIB, 5)
    check(to, 8 * MIB, 5)
    # As engines that sleep and wake do: the same addresses, other memory.
    unmap(at, 8 * MIB)
    unmap(to, 8 * MIB)
    release(handle)
    release(other)
    handle, other = create(8 * MIB), create(8 * MIB)
    for address, h in ((at, handle), (to, other)):
        put(address, 8 * MIB, h)
        allow(address, 8 * MIB)
        fill(address, 8 * MIB, 2)
"""


def test_what_a_graph_copies_and_sets_may_be_mapped_anew(runner: Runner) -> None:
    right(runner, GRAPHS + ANEW)
