# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects in a pool larger than VRAM, whose ends are guessed: what is named by a guess alone."""

from __future__ import annotations

from typing import Any

import pytest

from .pure_c import library
from .tiers import Runner

TRAINING = ("-m", "tests.shim.programs.training")


@pytest.mark.parametrize(("layers", "vram"), [(3, 61), (3, 37), (4, 80)])
def test_training_in_one_segment(runner: Runner, layers: int, vram: int) -> None:
    """When what was named before was taken for an end, these faulted."""
    result = runner.tiered(
        f"--chunk 2MiB --vram {vram}MiB --ram 400MiB", *TRAINING, layers, 2, device="128MiB"
    )
    assert (result.status, result.out) == (0, "right\n"), result.err


@pytest.mark.parametrize(("vram", "most"), [(96, 5 << 30), (160, 1850 << 20)])
def test_guesses_move_little(runner: Runner, vram: int, most: int) -> None:
    """When all that launches may mean came to VRAM, the first moved 9.8 GiB up, and now 2.4; the other 2.1
    when only what does not fit was taken for a guess, and now 1.6."""
    result = runner.tiered(f"--chunk 2MiB --vram {vram}MiB --ram 400MiB", *TRAINING, 6, 2, device="256MiB")
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert result.counters["h2d_bytes"] < most
    assert result.counters["chunks_in_place"] > 1000
    assert result.counters["prefetch_hits"] <= result.counters["prefetched"]


def test_random_pieces_of_a_pool_over_all_tiers(runner: Runner) -> None:
    flags = "--chunk 2MiB --vram 80MiB --ram 100MiB --spill {dir}/spill:512MiB"
    result = runner.tiered(flags, *TRAINING, 4, 2, device="128MiB")
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert min(result.counters["spill_bytes"], result.counters["chunks_in_place"]) > 0


IN_ORDER = """
import sys
from ctypes import c_uint64
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
add, fill = cuda.function("add_u32"), cuda.function("fill_u32")
WEIGHT = 6 * MIB
pool = cuda.reserve(128 * MIB)
cuda.map(pool, cuda.create(128 * MIB), 128 * MIB)
weights = range(pool, pool + 20 * WEIGHT, WEIGHT)
state = weights.stop
for weight in weights:
    cuda.launch(fill, c_uint64(weight), c_uint64(WEIGHT // 4), c_uint64(1))
cuda.launch(fill, c_uint64(state), c_uint64(WEIGHT // 4), c_uint64(0))
for _ in range(int(sys.argv[1])):
    for weight in weights:
        cuda.launch(add, c_uint64(state), c_uint64(state), c_uint64(weight), c_uint64(WEIGHT // 4))
    cuda.sync()
assert cuda.read(state + WEIGHT - 4, 4) == (20 * int(sys.argv[1])).to_bytes(4, "little")
"""


def test_weights_laid_out_in_order_come_to_vram(runner: Runner) -> None:
    """What a guess is right about is needed next: in RAM it would only have to be fetched from there."""
    flags = "--chunk 2MiB --vram 40MiB --ram 200MiB"
    few, many = (runner.tiered(flags, "-c", IN_ORDER, times) for times in (2, 8))
    assert few.status == many.status == 0, few.err + many.err
    # Of 6 times 60, and how many depends on who is the quicker.
    assert many.counters["chunks_in_place"] - few.counters["chunks_in_place"] < 120
    assert many.counters["mapped_slots"] == 0


OBJECTS = """
import ctypes
from ctypes import c_uint64
import numpy as np
from tests.shim.softcuda.driver import MIB, Driver, pointers
cuda = Driver("libcuda.so.1")
fill = cuda.function("fill_u32")
pool = cuda.alloc(64 * MIB)  # 32 chunks, of which VRAM holds 20
objects = [pool + i * 8 * MIB for i in range(6)]
"""

STALE = (
    OBJECTS
    + """
smaller = [address + 2 * MIB for address in objects[:4]]
for address in smaller + objects + [pool + 48 * MIB]:
    cuda.launch(fill, c_uint64(address), c_uint64(1), c_uint64(0))

def number(params):
    for i in range(6):
        words = (ctypes.c_uint32 * (8 * MIB // 4)).from_address(c_uint64.from_address(params[i]).value)
        np.frombuffer(words, dtype=np.uint32)[:] = i

kernel = cuda.register("number", number, *[8] * 6)
for _ in range(2):
    cuda.launch(kernel, *map(c_uint64, objects))
cuda("cuCtxSynchronize")
for i, address in enumerate(objects):
    assert cuda.read(address + 8 * MIB - 4, 4) == i.to_bytes(4, "little")
"""
)


def test_where_smaller_objects_were_before(runner: Runner) -> None:
    """What a launch is given is mostly of one size, so it may all reach as far as two of them."""
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 64MiB", "-c", STALE)
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 2


FIRST = (
    OBJECTS
    + """
smaller = [address + 2 * MIB for address in objects[:5]]

def launch(kernel, *params):
    "Of so many threads that what it names may leave behind it."
    cuda("cuLaunchKernel", kernel, 8192, 1, 1, 1, 1, 1, 0, 0, pointers(*map(c_uint64, params)), None)

def see(params):
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps if "softcuda-vram" in line]
    slots = [range(*(int(end, 16) for end in line.split()[0].split("-"))) for line in lines]
    certain = [*objects, *range(objects[5], objects[5] + 8 * MIB, 2 * MIB)]
    print(all(any(address in slot for slot in slots) for address in certain))

# From the end on, so that no guess leaves in vain twice.
for address in sorted([*smaller, *objects, pool + 48 * MIB], reverse=True):
    launch(fill, address, 1, 0)
launch(fill, objects[3], 1, 0)  # and all behind it, which fits
launch(cuda.register("see", see, *[8] * 6), *objects)
cuda("cuCtxSynchronize")
"""
)


def test_what_is_certain_comes_to_vram_first(runner: Runner) -> None:
    """Each of the objects is 1 chunk for certain and may be 4; but for the last, which is."""
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 64MiB", "-c", FIRST)
    assert (result.status, result.out) == (0, "True\n"), result.err
    assert result.counters["launches_exceeding"] == 1


FRESH = """
from ctypes import c_uint64
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
fill, some = cuda.function("fill_u32"), cuda.register("some", lambda _: None, *[8] * 5)
pool = cuda.alloc(160 * MIB)  # 80 chunks, of which VRAM holds 20
spread = range(pool, pool + 160 * MIB, 32 * MIB)
cuda.launch(some, *(c_uint64(spread[i]) for i in (0, 0, 2, 2, 4)))
for address in reversed(range(pool, pool + 160 * MIB, 2 * MIB)):
    cuda.launch(fill, c_uint64(address), c_uint64(1), c_uint64(0))
for _ in range(10):
    cuda.launch(some, *map(c_uint64, spread))
cuda("cuCtxSynchronize")
"""


def test_gaps_in_a_fresh_pool_are_no_objects(runner: Runner) -> None:
    """Taken for objects, they made all the launches of many addresses use RAM."""
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 200MiB", "-c", FRESH)
    assert result.status == 0, result.err
    assert result.counters["launches_exceeding"] == 1


@pytest.fixture
def guess() -> tuple[Any, Any]:
    ffi, lib = library()
    return lib, ffi.new("struct guess *")


def test_a_guess_is_vain_after_two_wrong_ones(guess: tuple[Any, Any]) -> None:
    lib, chunk = guess
    for wrong in range(2):
        assert not lib.guess_is_vain(chunk)
        lib.guess_made(chunk, 10 * wrong)
        lib.guess_over(chunk)
    assert lib.guess_is_vain(chunk)


def test_one_that_was_named_for_certain_is_not_wrong(guess: tuple[Any, Any]) -> None:
    lib, chunk = guess
    for _ in range(5):
        lib.guess_made(chunk, 0)
        lib.guess_confirmed(chunk, 0, 20)
        lib.guess_over(chunk)
    assert not lib.guess_is_vain(chunk)


@pytest.mark.parametrize(("left", "vain"), [(20, False), (21, True)])
def test_right_is_who_would_have_kept_it(guess: tuple[Any, Any], left: int, vain: bool) -> None:
    """For as long as VRAM, of 20 slots, would have; also when the count of those that left wraps."""
    lib, chunk = guess
    for _ in range(2):
        lib.guess_made(chunk, 0)
        lib.guess_over(chunk)
    lib.guess_made(chunk, (1 << 32) - 5)
    lib.guess_confirmed(chunk, (1 << 32) - 5 + left, 20)
    assert lib.guess_is_vain(chunk) == vain
