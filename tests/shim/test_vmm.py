# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that programs map themselves (cuMemCreate, cuMemMap) is paged like any other."""

from __future__ import annotations

import json

import pytest

from .tiers import Runner

# Pieces of 6 MiB lie across chunks of 4.
SMALL = "--chunk 4MiB --vram 40MiB --ram 32MiB --spill {dir}/spill:256MiB"
OPS = "tests.shim.programs.vmm_ops"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("how", ["alone", "beside"])
def test_random_operations_over_all_tiers(runner: Runner, how: str, seed: int, late: str) -> None:
    result = runner.tiered(SMALL, "-m", OPS, how, seed, 150, 8, 16, SOFTCUDA_LATE=late)
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert result.counters["evictions"] > 0
    assert result.counters["spill_bytes"] > 0
    assert result.counters["fetch_bytes"] > 0


def test_random_operations_in_place(runner: Runner) -> None:
    """What VRAM has no room for is used where it is."""
    for how in ("alone", "beside"):
        flags = "--paging mapped --chunk 4MiB --vram 40MiB --ram 160MiB"
        result = runner.tiered(flags, "-m", OPS, how, 1, 150, 8, 16)
        assert (result.status, result.out) == (0, "right\n"), result.err
        assert result.counters["chunks_in_place"] > 0
        assert result.counters["evictions"] == 0


def test_nothing_is_looked_at_while_all_fits(runner: Runner) -> None:
    for how in ("alone", "beside"):
        result = runner.tiered(
            "--chunk 4MiB --vram 220MiB --ram 16MiB", "-m", OPS, how, 2, 100, 6, 16, device="256MiB"
        )
        assert (result.status, result.out) == (0, "right\n"), result.err
        assert result.counters["launches"] == result.counters["evictions"] == 0


BEGIN = """
import ctypes, os, struct, sys
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
import numpy as np
from tests.shim.programs.random_ops import call, cuda, u64
from tests.shim.programs.vmm_ops import ACCESS, MIB, PROP, allow, create, put, release, reserve, unmap
context = c_void_p()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", byref(context), 0)
call("cuCtxSetCurrent", context)

def fill(address, size, value):
    call("cuMemsetD32_v2", u64(address), c_uint(value), c_size_t(size // 4))

def check(address, size, value):
    got = np.zeros(size // 4, dtype=np.uint32)
    call("cuMemcpyDtoH_v2", c_void_p(got.ctypes.data), u64(address), c_size_t(size))
    assert (got == value).all(), (hex(address), value, got)

def room():
    free, total = c_size_t(), c_size_t()
    call("cuMemGetInfo_v2", byref(free), byref(total))
    return free.value // MIB

def mapped(size, handle=None):
    handle = handle or create(size)
    address = reserve(size)
    put(address, size, handle)
    allow(address, size)
    return address, handle

def refused(name, *args):
    return getattr(cuda, name)(*args)

def refuses_map(address, size, handle, offset=0, flags=0):
    return refused("cuMemMap", u64(address), c_size_t(size), c_size_t(offset), u64(handle), u64(flags))
"""


def right(runner: Runner, program: str, flags: str = SMALL, **environment: str) -> str:
    """What the program said on stderr, that ended well and printed "right"."""
    program = BEGIN + program + '\nprint("right")\n'
    result = runner.tiered(flags, "-c", program, timeout=120, **environment)
    assert (result.status, result.out) == (0, "right\n"), result.err
    return "\n".join(line for line in result.err.splitlines() if line.startswith("greenboost: "))


TOTALS = """
before = room()
held = [create(20 * MIB) for _ in range(4)]
# Promised from the beginning on, though no byte is anywhere.
assert before - room() == 80, (before, room())
at = reserve(160 * MIB)
for i, handle in enumerate(held):
    put(at + i * 20 * MIB, 20 * MIB, handle)
assert before - room() == 80
allow(at, 80 * MIB)
fill(at, 80 * MIB, 7)
for handle in held:
    release(handle)
check(at, 80 * MIB, 7)
unmap(at + 20 * MIB, 20 * MIB)
assert before - room() == 60
unmap(at, 20 * MIB)
unmap(at + 40 * MIB, 40 * MIB)
assert room() == before
# More than there is, a piece at a time: refused where it is made, and it can be had once there is room.
held = []
new = c_uint64()
while not (code := refused("cuMemCreate", byref(new), c_size_t(16 * MIB), PROP, u64(0))):
    held.append(new.value)
assert code == 2
assert before - 16 <= len(held) * 16 <= before
pieces = [mapped(16 * MIB, handle) for handle in held]
for i, (address, _) in enumerate(pieces):
    fill(address, 16 * MIB, i + 1)
for i, (address, handle) in enumerate(pieces):
    check(address, 16 * MIB, i + 1)
    unmap(address, 16 * MIB)
    release(handle)
    create(16 * MIB)
assert refused("cuMemCreate", byref(new), c_size_t(16 * MIB), PROP, u64(0)) == 2
"""


def test_what_is_created_is_promised_and_counted_once(runner: Runner) -> None:
    right(runner, TOTALS)


LIVES = """
before = room()
# The last handle or mapping ends it, whichever that is.
at, handle = mapped(8 * MIB)
again = c_uint64()
call("cuMemRetainAllocationHandle", byref(again), c_void_p(at + 5 * MIB))
assert again.value == handle
release(handle)
release(handle)
assert refused("cuMemRelease", u64(handle)) == 1
fill(at, 8 * MIB, 3)
check(at, 8 * MIB, 3)
call("cuMemRetainAllocationHandle", byref(again), c_void_p(at))
assert again.value == handle
unmap(at, 8 * MIB)
assert before - room() == 8
# At the same place, which had other tenants meanwhile.
other = create(8 * MIB)
put(at, 8 * MIB, other)
fill(at, 8 * MIB, 4)
there = mapped(8 * MIB, handle)[0]
check(there, 8 * MIB, 3)
check(at, 8 * MIB, 4)
unmap(at, 8 * MIB)
unmap(there, 8 * MIB)
put(at, 8 * MIB, handle)
put(there, 8 * MIB, other)
check(at, 8 * MIB, 3)
check(there, 8 * MIB, 4)
for address, h in ((at, handle), (there, other)):
    unmap(address, 8 * MIB)
    put(address, 8 * MIB, h)
check(at, 8 * MIB, 3)
unmap(at, 8 * MIB)
release(handle)
assert refused("cuMemRelease", u64(handle)) == 1
assert refuses_map(at, 8 * MIB, handle) == 1
release(other)
unmap(there, 8 * MIB)
for address in (at, there):
    call("cuMemAddressFree", u64(address), c_size_t(8 * MIB))
assert room() == before
"""


def test_memory_lives_while_it_is_held_or_mapped(runner: Runner) -> None:
    right(runner, LIVES)


ERRORS = """
at, handle = mapped(8 * MIB)
free = reserve(32 * MIB)
value, size, base = c_uint64(), c_size_t(), c_uint64()
INVALID, UNSUPPORTED = 1, 801
assert refuses_map(free, 4 * MIB, handle) == UNSUPPORTED  # a part of it, as the driver has it
assert refuses_map(free, 4 * MIB, handle, 4 * MIB) == UNSUPPORTED
assert refuses_map(free, 16 * MIB, handle) == INVALID
assert refuses_map(free, 8 * MIB, handle, 0, 1) == INVALID
assert refuses_map(free, 8 * MIB, handle) == UNSUPPORTED  # twice
other = create(8 * MIB)
assert refuses_map(free + MIB, 8 * MIB, other) == INVALID  # not aligned
assert refuses_map(free + 26 * MIB, 8 * MIB, other) == INVALID  # beyond the end
assert refuses_map(at, 8 * MIB, other) == INVALID  # occupied
put(free + 8 * MIB, 8 * MIB, other)
assert refuses_map(free + 4 * MIB, 8 * MIB, create(8 * MIB)) == INVALID
assert refused("cuMemUnmap", u64(free), c_size_t(16 * MIB)) == INVALID
assert refused("cuMemUnmap", u64(free + 8 * MIB), c_size_t(4 * MIB)) == INVALID
assert refused("cuMemUnmap", u64(free + 10 * MIB), c_size_t(6 * MIB)) == INVALID
assert refused("cuMemAddressFree", u64(free), c_size_t(32 * MIB)) == INVALID
assert refused("cuMemAddressFree", u64(at), c_size_t(8 * MIB)) == INVALID
assert refused("cuMemFree_v2", u64(at)) == INVALID
assert refused("cuMemFree_v2", u64(free + 8 * MIB)) == INVALID
assert refused("cuMemFreeAsync", u64(at), None) == INVALID
assert refused("cuMemSetAccess", u64(free), c_size_t(16 * MIB), ACCESS, c_size_t(1)) == INVALID
peer = ctypes.create_string_buffer(struct.pack("<3i", 1, 1, 3))
assert refused("cuMemSetAccess", u64(at), c_size_t(8 * MIB), peer, c_size_t(1)) == UNSUPPORTED
fd = c_int()
assert refused("cuMemExportToShareableHandle", byref(fd), u64(handle), 1, u64(0)) == UNSUPPORTED
assert refused("cuMemRetainAllocationHandle", byref(value), c_void_p(free)) == INVALID
# What lies between mappings is nobody's.
assert refused("cuMemsetD8_v2", u64(free), ctypes.c_ubyte(1), c_size_t(16)) != 0
assert refused("cuMemsetD8_v2", u64(free + 8 * MIB), ctypes.c_ubyte(1), c_size_t(9 * MIB)) != 0
# Answers.
prop = ctypes.create_string_buffer(64)
call("cuMemGetAllocationPropertiesFromHandle", prop, u64(handle))
assert struct.unpack_from("<4i", prop) == (1, 0, 1, 0)
here = ctypes.create_string_buffer(struct.pack("<2i", 1, 0))
call("cuMemGetAccess", byref(value), here, u64(at + MIB))
assert value.value == 3
call("cuMemGetAccess", byref(value), here, u64(free + 9 * MIB))
assert value.value == 0
call("cuMemGetAddressRange_v2", byref(base), byref(size), u64(free + 9 * MIB))
assert (base.value, size.value) == (free + 8 * MIB, 8 * MIB)
for attribute, expected in ((1, 0), (2, 2), (9, 0), (11, at), (12, 8 * MIB), (16, 3), (13, 1)):
    value.value = 0
    call("cuPointerGetAttribute", byref(value), attribute, u64(at + 3 * MIB))
    assert value.value == expected, (attribute, value.value)
"""


def test_errors_and_answers_are_the_driver_s(runner: Runner) -> None:
    said = right(runner, ERRORS)
    assert said.count("a second mapping") == said.count("cuMemExportToShareableHandle") == 1
    assert said.count("another GPU (cuMemSetAccess)") == 1


LAUNCH = """
module, function = c_void_p(), c_void_p()
call("cuModuleLoadData", byref(module), b"softcuda")
call("cuModuleGetFunction", byref(function), module, b"fill_u32")

def launch(address, size, value):
    params = [u64(address), u64(size // 4), c_uint(value)]
    pointers = (c_void_p * 3)(*(ctypes.addressof(p) for p in params))
    call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None)
"""

HOLD = (
    LAUNCH
    + """
# A tensor across pieces of 6 MiB, of which none is whole chunks, and others that drive it out.
base = reserve(240 * MIB)
for i in range(24):
    h = create(6 * MIB)
    put(base + i * 6 * MIB, 6 * MIB, h)
    release(h)
allow(base, 24 * 6 * MIB)
for turn in range(3):
    for i in range(4):
        launch(base + i * 36 * MIB, 36 * MIB, 100 * turn + i)
    for i in range(4):
        check(base + i * 36 * MIB, 36 * MIB, 100 * turn + i)
# In its middle some pieces go and come back, while the rest stays.
unmap(base + 60 * MIB, 12 * MIB)
for i in (10, 11):
    put(base + i * 6 * MIB, 6 * MIB, create(6 * MIB))
launch(base + 54 * MIB, 24 * MIB, 77)
check(base + 54 * MIB, 24 * MIB, 77)
check(base + 36 * MIB, 18 * MIB, 201)
check(base + 78 * MIB, 30 * MIB, 202)
# Objects that are known lie far apart: what is between them need not fit, as it need not be theirs.
for at in (0, 138 * MIB):
    fill(base + at, 6 * MIB, 5)
    launch(base + at, 4, 6)
launch(base, 24 * MIB, 8)
check(base, 24 * MIB, 8)
"""
)


def test_launches_see_what_runs_across_pieces(runner: Runner) -> None:
    right(runner, HOLD)


PLAIN = """
at, handle = mapped(8 * MIB)
fill(at, 8 * MIB, 3)
check(at, 8 * MIB, 3)
assert handle >> 48 == 0  # the driver's own
"""


def test_without_paging_the_driver_is_alone(runner: Runner) -> None:
    right(runner, PLAIN, flags="--paging off")


THREADS = """
import threading
base, PIECE = reserve(120 * MIB), 6 * MIB
wrong = []

def work(mine):
    "Places of its own, whose chunks are also the neighbours'."
    call("cuCtxSetCurrent", context)
    kept = []
    for turn in range(12):
        kept += [create(PIECE) for _ in mine[len(kept) :]]
        for place, handle in zip(mine, kept, strict=True):
            put(base + place * PIECE, PIECE, handle)
        at, size = base + mine[0] * PIECE, len(mine) * PIECE
        allow(at, size)
        fill(at, size, 1000 * mine[0] + turn)
        check(at, size, 1000 * mine[0] + turn)
        unmap(at, size)
        while len(kept) > turn % 3:
            release(kept.pop())
    for handle in kept:
        release(handle)

def contained(mine):
    try:
        work(mine)
    except BaseException as error:
        wrong.append(error)

before = room()
threads = [threading.Thread(target=contained, args=(range(i, i + 4),)) for i in range(0, 20, 4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong
assert room() == before
"""


@pytest.mark.parametrize("late", ["0", "1"])
def test_threads_share_a_reservation(runner: Runner, late: str) -> None:
    right(runner, THREADS, SOFTCUDA_LATE=late)


TWO = """
contexts = [context, c_void_p()]
call("cuDevicePrimaryCtxRetain", byref(contexts[1]), 1)
props = [ctypes.create_string_buffer(struct.pack("<4i", 1, 0, 1, i), 64) for i in range(2)]

def made(device, size):
    handle = c_uint64()
    call("cuMemCreate", byref(handle), c_size_t(size), props[device], u64(0))
    return handle.value

def use(device):
    call("cuCtxSetCurrent", contexts[device])
    held = []
    for i in range(6):
        handle, address = made(device, 12 * MIB), reserve(12 * MIB)
        put(address, 12 * MIB, handle)
        release(handle)
        fill(address, 12 * MIB, i)
        held.append(address)
    for i, address in enumerate(held):
        check(address, 12 * MIB, i)
    return held

for device in (0, 1):
    use(device)
# Of a device whose context is not the current one, and beside the other's.
there = reserve(32 * MIB)
put(there, 12 * MIB, made(0, 12 * MIB))
assert refuses_map(there + 16 * MIB, 12 * MIB, made(1, 12 * MIB)) == 801
fill(there, 12 * MIB, 3)
check(there, 12 * MIB, 3)
call("cuCtxSetCurrent", contexts[0])
fill(there, 12 * MIB, 4)
check(there, 12 * MIB, 4)
# What a reset leaves of the program's handles and mappings can be given back, and no more.
call("cuCtxSetCurrent", contexts[0])
(address, again, *_), handle = use(0), made(0, 12 * MIB)
places = [reserve(12 * MIB) for _ in range(4)]
held = [made(0, 12 * MIB) for _ in places]
for place, one in zip(places, held, strict=True):
    put(place, 12 * MIB, one)
unmap(places[0], 12 * MIB)
call("cuDevicePrimaryCtxReset_v2", 0)
for one in (handle, *held):
    release(one)
    assert refused("cuMemRelease", u64(one)) == 1
unmap(places[1], 12 * MIB)
assert refused("cuMemUnmap", u64(places[1]), c_size_t(12 * MIB)) == 1
for place in (address, *places[:3]):
    call("cuMemAddressFree", u64(place), c_size_t(12 * MIB))
call("cuDevicePrimaryCtxRetain", byref(contexts[0]), 0)
use(0)
# Nor does it keep its addresses from what comes later.
for place in (again, places[3]):
    put(place, 12 * MIB, made(0, 12 * MIB))
    fill(place, 12 * MIB, 6)
    check(place, 12 * MIB, 6)
"""


def test_devices_page_side_by_side_and_anew_after_a_reset(runner: Runner) -> None:
    said = right(runner, TWO, SOFTCUDA_DEVICES="2")
    assert said.count("memory of two GPUs in one reservation") == 1


PINNED = """
held = [mapped(size * MIB)[0] for size in (12, 8, 20, 24)]
for turn in range(2):
    for i, address in enumerate(held):
        fill(address, 8 * MIB, i)
    for i, address in enumerate(held):
        check(address, 8 * MIB, i)
"""


def test_pins_mean_the_size_of_what_is_created(runner: Runner) -> None:
    flags = "--chunk 4MiB --vram 32MiB --ram 96MiB --pin size=8MiB --trace {dir}/trace.json"
    right(runner, PINNED, flags)
    events = json.loads((runner.folder / "trace.json").read_text())
    left = {event["args"]["chunk"] for event in events if event["name"] == "evict"}
    # Each reservation has its chunks behind those of the one before.
    assert left & {0, 1, 2}
    assert not left & {3, 4}


FORKED = """
at, handle = mapped(20 * MIB)
other = create(20 * MIB)
child = os.fork()
if not child:
    # No CUDA there: whatever it says, it says it at once.
    cuda.cuMemRelease(u64(other))
    cuda.cuMemUnmap(u64(at), c_size_t(20 * MIB))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
fill(at, 20 * MIB, 3)
check(at, 20 * MIB, 3)
release(other)
"""


def test_a_child_has_no_part_in_it(runner: Runner) -> None:
    right(runner, FORKED)


STOPPED = """
at, handle = mapped(8 * MIB)
unmap(at, 8 * MIB)
mapped(32 * MIB)  # with it all of VRAM
# A kernel's fault spoils the context: when a slot should give way then, paging stops.
module, function = c_void_p(), c_void_p()
call("cuModuleLoadData", byref(module), b"softcuda")
call("cuModuleGetFunction", byref(function), module, b"fill_u32")
params = [u64(reserve(8 * MIB)), u64(1), c_uint(0)]
pointers = (c_void_p * 3)(*(ctypes.addressof(p) for p in params))
# The launch itself says so if the kernel was quick.
assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None) in (0, 700)
assert refused("cuCtxSynchronize") == 700
assert refused("cuMemCreate", byref(c_uint64()), c_size_t(2 * MIB), PROP, u64(0)) == 700
# What could not be mapped again is as it was.
assert refuses_map(at, 8 * MIB, handle) == 700
assert refused("cuMemUnmap", u64(at), c_size_t(8 * MIB)) == 1
call("cuMemAddressFree", u64(at), c_size_t(8 * MIB))
"""


def test_what_cannot_be_mapped_again_stays_unmapped(runner: Runner) -> None:
    flags = "--paging mapped --chunk 4MiB --vram 40MiB --ram 32MiB"
    right(runner, STOPPED, flags, SOFTCUDA_SPOIL="1")


CAPTURED = """
stream, graph = c_void_p(), c_void_p()
call("cuStreamCreate", byref(stream), 1)
at, handle = mapped(12 * MIB)
others = [mapped(12 * MIB)[0] for _ in range(6)]
fill(at, 12 * MIB, 1)
call("cuStreamBeginCapture_v2", stream, 2)
there, kept = mapped(12 * MIB)  # as allocators do while a graph is captured
call("cuMemcpyDtoDAsync_v2", u64(there), u64(at), c_size_t(4 * MIB), stream)
release(kept)
# What ends is waited for, which cannot be done now.
assert refused("cuMemUnmap", u64(there), c_size_t(12 * MIB)) == 900
cuda.cuStreamEndCapture(stream, byref(graph))
fill(there, 12 * MIB, 5)
check(there, 12 * MIB, 5)
unmap(there, 12 * MIB)
check(at, 12 * MIB, 1)
"""


def test_during_a_capture_memory_comes_and_does_not_go(runner: Runner) -> None:
    right(runner, CAPTURED)


PROMISES = """
before = room()
# What a bigger creation was promised is not held against it when it is mapped, with others beside it.
size = before // 4 * 6 // 10 * 4 * MIB
big, small = create(size), create(4 * MIB)
at = reserve(size)
put(at, size, big)
assert before - room() == size // MIB + 4
unmap(at, size)
release(big)
release(small)
assert room() == before
# It goes with what it was for, whatever else is promised.
big, small = create(160 * MIB), create(4 * MIB)
release(big)
assert before - room() == 4, (before, room())
# What is promised as one is given back in parts, as pieces of 6 MiB make up chunks.
six = [create(6 * MIB) for _ in range(8)]
while six:
    assert before - room() == -(-(4 + 6 * len(six)) // 4) * 4, (before, room())
    release(six.pop(len(six) // 2))
"""


def test_a_promise_goes_with_what_it_was_for(runner: Runner) -> None:
    right(runner, PROMISES)


SHARED = """
before = room()
at = reserve(200 * MIB)
big, small = create(158 * MIB), create(6 * MIB)
put(at, 158 * MIB, big)
put(at + 158 * MIB, 6 * MIB, small)
fill(at + 158 * MIB, 6 * MIB, 3)
unmap(at, 158 * MIB)
release(big)
# The chunk that both had, and the next.
assert before - room() == 8, (before, room())
check(at + 158 * MIB, 6 * MIB, 3)
# From the other side; the ends of the first are admitted already.
big = create(150 * MIB)
put(at + 6 * MIB, 150 * MIB, big)
put(at, 6 * MIB, create(6 * MIB))
unmap(at + 6 * MIB, 150 * MIB)
release(big)
assert before - room() == 16, (before, room())
"""


def test_a_shared_chunk_does_not_keep_the_rest(runner: Runner) -> None:
    right(runner, SHARED)


FIXED = """
stream, graph, exe = c_void_p(), c_void_p(), c_void_p()
call("cuStreamCreate", byref(stream), 1)
at, handle = mapped(8 * MIB)
others = [mapped(16 * MIB)[0] for _ in range(6)]
call("cuStreamBeginCapture_v2", stream, 2)
call("cuMemsetD32Async", u64(at), c_uint(5), c_size_t(8 * MIB // 4), stream)
call("cuStreamEndCapture", stream, byref(graph))
call("cuGraphInstantiateWithFlags", byref(exe), graph, u64(0))

def use():
    for other in others:
        fill(other, 16 * MIB, 9)
    call("cuGraphLaunch", exe, stream)
    call("cuStreamSynchronize", stream)
    check(at, 8 * MIB, 5)

use()
# As engines that sleep and wake do: the same addresses, other memory.
unmap(at, 8 * MIB)
release(handle)
handle = create(8 * MIB)
put(at, 8 * MIB, handle)
use()
# While the program holds what was there, and with it coming back.
unmap(at, 8 * MIB)
other = create(8 * MIB)
put(at, 8 * MIB, other)
use()
unmap(at, 8 * MIB)
put(at, 8 * MIB, handle)
check(at, 8 * MIB, 5)
use()
"""


def test_what_graphs_set_is_fixed_by_its_address(runner: Runner) -> None:
    right(runner, FIXED)
