# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that name more than VRAM holds: what has no room there is used in place, in RAM."""

from __future__ import annotations

import json

import pytest

from .pieces import SMALL
from .tiers import Runner

RAM = "--chunk 2MiB --vram 40MiB --ram 16MiB"
EXCESS_OPS = ("-m", "tests.shim.programs.excess_ops", 22)  # of the 20 that VRAM holds
SAID = "fit VRAM: the others are used in RAM"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("late", ["0", "1"])
def test_random_operations(runner: Runner, seed: int, late: str) -> None:
    result = runner.tiered(SMALL, *EXCESS_OPS, seed, 150, 8, 16, SOFTCUDA_LATE=late)
    assert (result.status, result.out) == (0, "right\n"), result.err
    counters = result.counters
    assert counters["launches_exceeding"] > 5
    assert counters["chunks_in_place"] > 0
    assert min(counters["evictions"], counters["spill_bytes"], counters["fetch_bytes"]) > 0
    assert result.err.count(SAID) == 1


BEGIN = """
import ctypes, sys
from ctypes import c_uint32, c_uint64, c_void_p
import numpy as np
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
add, fill = cuda.function("add_u32"), cuda.function("fill_u32")
WORDS = 16 * MIB // 4

def filled(value):
    "An object that is known to reach to the end of its allocation, of whose last word another is made."
    address = cuda.alloc(16 * MIB)
    cuda("cuMemsetD32_v2", address, c_uint32(value), WORDS - 1)
    cuda("cuMemsetD32_v2", address + 16 * MIB - 4, c_uint32(value), 1)
    return address

def all_are(address, value):
    got = np.zeros(WORDS, dtype=np.uint32)
    cuda("cuMemcpyDtoH_v2", c_void_p(got.ctypes.data), address, got.nbytes)
    return (got == value).all()

a, b, c = filled(1), filled(2), filled(4)  # 24 chunks, of which VRAM holds 20
for address, value in ((a, 1), (b, 2), (c, 4)):
    cuda.launch(fill, c_uint64(address + 16 * MIB - 4), c_uint64(1), c_uint32(value))

def sum_up(stream=0):
    cuda.launch(add, c_uint64(a), c_uint64(b), c_uint64(c), c_uint64(WORDS), stream=stream)
"""

ENDS = """
import sys
from ctypes import c_uint32, c_uint64
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
add, fill = cuda.function("add_u32"), cuda.function("fill_u32")
WORDS = 16 * MIB // 4
a, b, c = (cuda.alloc(16 * MIB) for _ in range(3))  # 24 chunks, of which VRAM holds 20
for address in (a, b, c):
    {before}
    cuda.launch(fill, c_uint64(address), c_uint64(WORDS), c_uint32(3))
for _ in range(2):
    cuda.launch(add, c_uint64(c), c_uint64(a), c_uint64(b), c_uint64(WORDS))
assert cuda.read(c + 16 * MIB - 4, 4) == (6).to_bytes(4, "little")
"""


@pytest.mark.parametrize(
    "before", ["pass", "cuda.launch(fill, c_uint64(address + 6 * MIB), c_uint64(1), c_uint32(0))"]
)
def test_objects_whose_ends_nobody_told(runner: Runner, before: str) -> None:
    """As PyTorch's: each fills its allocation, in which views of it may have been used, too."""
    result = runner.tiered(RAM, "-c", ENDS.format(before=before))
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 2


LARGE = """
from ctypes import c_uint32, c_uint64
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
fill = cuda.function("fill_u32")
all, begin = cuda.alloc(48 * MIB), {begin} * MIB
WORDS = (48 * MIB - begin) // 4
if begin:
    # For all that is known, the first word's object reaches to the end as well.
    cuda("cuMemsetD32_v2", all + begin, c_uint32(1), WORDS)
    cuda.launch(fill, c_uint64(all), c_uint64(1), c_uint32(2))
cuda.launch(fill, c_uint64(all + begin), c_uint64(WORDS), c_uint32(3))
assert cuda.read(all + 48 * MIB - 4, 4) == (3).to_bytes(4, "little")
"""


@pytest.mark.parametrize("begin", [0, 4])
def test_one_object_larger_than_vram(runner: Runner, begin: int) -> None:
    """The only one of its allocation, or as much of it as one write filled."""
    result = runner.tiered(RAM, "-c", LARGE.format(begin=begin))
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == (2 if begin else 1)


POOLED = """
from ctypes import c_uint32, c_uint64
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
add, fill = cuda.function("add_u32"), cuda.function("fill_u32")

def reserved(size):
    "Pieces side by side, behind which others may come to lie."
    address = cuda.reserve(2 * size)
    for at in range(address, address + size, 4 * MIB):
        cuda.map(at, cuda.create(4 * MIB), 4 * MIB)
    return address

def use(size, *objects):
    for address in objects:
        cuda.launch(fill, c_uint64(address), c_uint64(size // 4), c_uint32(3))
    if len(objects) == 3:
        cuda.launch(add, *map(c_uint64, objects), c_uint64(size // 4))
    assert cuda.read(objects[0] + size - 4, 4)[0] == (6 if len(objects) == 3 else 3)

{program}
"""
EACH = "objects = [reserved(16 * MIB) for _ in range(3)]"
USE_EACH = "use(16 * MIB, *objects)"


@pytest.mark.parametrize(
    "program",
    [
        f"{EACH}; {USE_EACH}",
        f"{EACH}; use(4, *(a + 6 * MIB for a in objects)); {USE_EACH}",
        "use(48 * MIB, reserved(48 * MIB))",
        "first = reserved(48 * MIB); use(16 * MIB, *range(first, first + 48 * MIB, 16 * MIB))",
        "first = cuda.alloc(64 * MIB); use(16 * MIB, *range(first, first + 48 * MIB, 16 * MIB))",
    ],
    ids=["one each", "with views", "larger than VRAM", "side by side", "in a pool"],
)
def test_objects_in_memory_that_the_program_maps(runner: Runner, program: str) -> None:
    """Of 24 chunks VRAM holds 20, and RAM the rest."""
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 64MiB", "-c", POOLED.format(program=program))
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] > 0


LESS_RAM = """
from ctypes import c_uint64
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
many = cuda.register("many", lambda _: None, *[8] * 12)
objects = [cuda.alloc(8 * MIB) for _ in range(12)]  # 48 chunks; VRAM and RAM hold 28
for _ in range(2):
    cuda.launch(many, *map(c_uint64, objects))
cuda("cuCtxSynchronize")
"""


def test_what_ram_has_no_room_for_is_cut(runner: Runner) -> None:
    """What it may mean fits nowhere; what it surely means does, as before."""
    result = runner.tiered(SMALL, "-c", LESS_RAM)
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 0


AGAIN = (
    BEGIN
    + """
for _ in range(int(sys.argv[1])):
    sum_up()
cuda("cuCtxSynchronize")
assert all_are(a, 6) and all_are(b, 2) and all_are(c, 4)
"""
)


def test_what_was_put_in_place_stays_there_for_the_next(runner: Runner) -> None:
    """Of 24 chunks 20 fit VRAM; copies of a chunk or less leave the others where they are."""
    once, often = (runner.tiered(RAM, "-c", AGAIN, times).counters for times in (1, 11))
    assert once["mapped_slots"] == often["mapped_slots"] == 4
    assert once["chunks_in_place"] + 10 * 4 == often["chunks_in_place"]
    assert once["chunk_stalls"] == often["chunk_stalls"]
    assert often["launches_exceeding"] == 11


FITS = (
    BEGIN
    + """
sum_up()
for address in (a, b, c):
    cuda.launch(add, *[c_uint64(address)] * 3, c_uint64(WORDS))
assert all_are(a, 12) and all_are(b, 4) and all_are(c, 8)
"""
)


def test_what_fits_comes_to_vram(runner: Runner) -> None:
    result = runner.tiered(RAM, "-c", FITS)
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 1
    assert result.counters["mapped_slots"] == 0


ROWS = (
    BEGIN
    + """
from tests.shim.softcuda.driver import DEVICE, HOST, Memcpy3D
sum_up()
# One call, over borders of chunks: 3D copies with rows of one length are not cut.
got = np.zeros(WORDS, dtype=np.uint32)
for address, value in ((a, 6), (b, 2), (c, 4)):
    copy = Memcpy3D(srcMemoryType=DEVICE, srcDevice=address, srcPitch=got.nbytes, srcHeight=1,
                    dstMemoryType=HOST, dstHost=got.ctypes.data, dstPitch=got.nbytes, dstHeight=1,
                    WidthInBytes=got.nbytes, Height=1, Depth=1)
    cuda("cuMemcpy3D_v2", ctypes.byref(copy))
    assert (got == value).all()
"""
)


def test_rare_copies_are_right_beside_it(runner: Runner) -> None:
    result = runner.tiered(RAM, "-c", ROWS)
    assert result.status == 0, result.err


WAITS = (
    BEGIN
    + """
value = c_uint32.from_address(cuda.out(c_void_p, "cuMemHostAlloc", 4096, 2))
stream = cuda.stream()
sum_up()
cuda("cuCtxSynchronize")
cuda("cuStreamWaitValue32_v2", stream, ctypes.addressof(value), c_uint32(1), 0)
sum_up(stream)
# The stream of these does not wait; were the other one waited for, that would be for ever.
other = cuda.stream()
for address in (b, c):
    cuda.launch(add, *[c_uint64(address)] * 3, c_uint64(WORDS), stream=other)
cuda("cuStreamSynchronize", other)
value.value = 1
cuda("cuCtxSynchronize")
assert all_are(a, 12) and all_are(b, 4) and all_are(c, 8)
"""
)


@pytest.mark.parametrize("late", ["0", "1"])
def test_a_stream_that_waits_for_the_program_is_not_waited_for(runner: Runner, late: str) -> None:
    result = runner.tiered(RAM, "-c", WAITS, timeout=60, SOFTCUDA_LATE=late)
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 2


FREES = (
    BEGIN
    + """
sum_up()
for address in (a, b, c):
    cuda("cuMemFree_v2", address)
"""
)


def test_freed_while_in_place(runner: Runner) -> None:
    result = runner.tiered(RAM, "-c", FREES)
    assert result.status == 0, result.err
    assert result.counters["mapped_slots"] == result.counters["vram_slots_used"] == 0


CHUNKS = """
import ctypes, sys
from ctypes import c_uint32, c_uint64, c_void_p
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
chunks = [cuda.alloc(2 * MIB) for _ in range(32)]
MOST = 28

def words(address):
    return (c_uint32 * 1024).from_address(address)

def count(params):
    for at in {c_uint64.from_address(params[i]).value for i in range(MOST)}:
        words(at)[0] += 1

kernel = cuda.register("count", count, *[8] * MOST)

def use(*named, stream=0):
    named = [chunks[i] for i in named]
    cuda.launch(kernel, *map(c_uint64, named + named[-1:] * (MOST - len(named))), stream=stream)

def first_word(i):
    got = c_uint32()
    cuda("cuMemcpyDtoH_v2", ctypes.byref(got), chunks[i], 4)
    return got.value

for i, address in enumerate(chunks):
    cuda("cuMemsetD32_v2", address, c_uint32(100 * i), 2 * MIB // 4)
IN_VRAM = range(12, 32)
use(*IN_VRAM)
use(*IN_VRAM, *range(4))  # which are used in place
cuda.sync()  # streams are made so as not to wait for the null stream
"""

STICKY = (
    CHUNKS
    + """
table = cuda.alloc(4096)
cuda.write(table, chunks[0].to_bytes(8, "little"))
use(*IN_VRAM, *range(4, 8))  # of 6 places in RAM, two are free
follow = cuda.function("follow_u32")
cuda.launch(follow, c_uint64(table + 2048), c_uint64(table), c_uint64(1), c_uint64(1))
assert cuda.read(table + 2048, 4) == (1).to_bytes(4, "little")
for i in range(32):
    assert first_word(i) == 100 * i + (i < 8) + 3 * (i in IN_VRAM), i
"""
)


def test_what_a_table_points_to_stays_in_place(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", STICKY)
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 2
    assert result.counters["mapped_slots"] == 6


FREED_BEHIND = (
    CHUNKS
    + """
cuda("cuCtxSynchronize")
value = c_uint32.from_address(cuda.out(c_void_p, "cuMemHostAlloc", 4096, 2))
waits, frees = cuda.stream(), cuda.stream()
cuda("cuStreamWaitValue32_v2", waits, ctypes.addressof(value), c_uint32(1), 0)
for i in range(4):
    cuda("cuMemFreeAsync", chunks[i], frees)
cuda.sync(frees)
more = [cuda.alloc(2 * MIB) for _ in range(2)]
value.value = 1
cuda.sync(waits)
cuda("cuMemFreeAsync", more.pop(), frees)
"""
)


def test_freed_in_order_while_a_stream_waits(runner: Runner) -> None:
    """To unmap waits for all streams, and the host must not wait for one that waits for it."""
    result = runner.tiered(SMALL, "-c", FREED_BEHIND, timeout=60)
    assert result.status == 0, result.err
    assert result.counters["mapped_slots"] == 0


BUSY = (
    CHUNKS
    + """
value = c_uint32.from_address(cuda.out(c_void_p, "cuMemHostAlloc", 4096, 2))
waits, other = cuda.stream(), cuda.stream()
cuda("cuStreamWaitValue32_v2", waits, ctypes.addressof(value), c_uint32(1), 0)
use(*IN_VRAM, stream=waits)
use(*range(12, 30), *range(6), stream=other)  # 4 and 5 are neither in VRAM nor in place
cuda.sync(other)
value.value = 1
cuda.sync(waits)
for i in range(32):
    assert first_word(i) == 100 * i + (i < 4) + (i < 6) + 3 * (i in IN_VRAM) + (12 <= i < 30), i
"""
)


@pytest.mark.parametrize("late", ["0", "1"])
def test_vram_that_a_waiting_stream_uses_is_not_waited_for(runner: Runner, late: str) -> None:
    result = runner.tiered(SMALL, "-c", BUSY, timeout=30, SOFTCUDA_LATE=late)
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 2


LESS = """
from tests.shim.softcuda.driver import MIB, Driver
from ctypes import c_uint64
cuda = Driver("libcuda.so.1")
all = cuda.alloc(64 * MIB)
for _ in range(16):  # from the driver's pool
    cuda.out(c_uint64, "cuMemAllocAsync", 2 * MIB - 4096, None)
cuda.launch(cuda.register("many", lambda _: None, *[8] * 18),
            *(c_uint64(all + i * 2 * MIB) for i in range(18)))
cuda("cuCtxSynchronize")
"""


def test_vram_that_turns_out_to_be_less(runner: Runner) -> None:
    """The launch was to fit, until the driver refused one of the slots."""
    result = runner.tiered(SMALL, "-c", LESS)
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 1
    assert result.counters["mapped_slots"] > 0


PINNED = """
from tests.shim.softcuda.driver import MIB, Driver
from ctypes import c_uint64
cuda = Driver("libcuda.so.1")
all, pinned = cuda.alloc(48 * MIB), cuda.alloc(6 * MIB)
addresses = [all + i * 2 * MIB for i in range(21)] + [pinned + i * 2 * MIB for i in range(3)]
cuda.launch(cuda.register("many", lambda _: None, *[8] * 24), *map(c_uint64, addresses))
cuda("cuCtxSynchronize")
"""


def test_what_is_pinned_is_not_the_excess(runner: Runner) -> None:
    flags = f"{SMALL} --trace {{dir}}/trace.json --pin size=6MiB"
    result = runner.tiered(flags, "-c", PINNED)
    assert result.status == 0, result.err
    events = json.loads((runner.folder / "trace.json").read_text())
    mapped = {event["args"]["chunk"] for event in events if event["name"] == "map in RAM"}
    assert mapped
    assert not mapped & {24, 25, 26}
