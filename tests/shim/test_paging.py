# SPDX-License-Identifier: GPL-2.0-or-later
"""`greenboost run --paging`: memory used in place in RAM, or the driver's alone."""

from __future__ import annotations

import pytest

from .pieces import BEGIN, FULL
from .tiers import PROGRAMS, Runner

MAPPED = "--paging mapped --chunk 2MiB --vram 40MiB --ram 128MiB"
OPS = PROGRAMS / "random_ops.py"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("late", ["0", "1"])
def test_random_operations_in_place(runner: Runner, seed: int, late: str) -> None:
    """Eight allocations of up to 16 MiB: VRAM holds a part, and nothing moves."""
    result = runner.tiered(MAPPED, OPS, seed, 150, 8, 16, SOFTCUDA_LATE=late)
    assert (result.status, result.out) == (0, "right\n"), result.err
    counters = result.counters
    assert counters["chunks_in_place"] > 0
    assert counters["chunk_hits"] > 0
    assert counters["evictions"] == counters["h2d_bytes"] == counters["d2h_bytes"] == 0
    (session,) = result.report["sessions"]
    assert session["paging"] == result.report["paging"] == "mapped"


def test_a_full_ram_refuses_and_loses_nothing(runner: Runner) -> None:
    result = runner.tiered("--paging mapped --chunk 2MiB --vram 40MiB --ram 32MiB", "-c", FULL)
    assert result.status == 0, result.err
    assert 40 + 32 - 16 <= int(result.out) <= 40 + 32


AGAIN = (
    BEGIN
    + """
import numpy as np
MIB = 1 << 20
free, total = c_size_t(), c_size_t()
def room():
    assert cuda.cuMemGetInfo_v2(byref(free), byref(total)) == 0
    return free.value // MIB, total.value // MIB
before = room()
got = np.zeros(6 * MIB // 4, dtype=np.uint32)
for turn in range(20):
    held = []
    for i in range(8):  # 48 MiB of 40 in VRAM
        held.append(c_uint64())
        assert cuda.cuMemAlloc_v2(byref(held[i]), c_size_t(6 * MIB)) == 0
        assert cuda.cuMemsetD32_v2(held[i], ctypes.c_uint(turn * 8 + i), c_size_t(6 * MIB // 4)) == 0
    within = room()
    for i, address in enumerate(held):
        assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), address, c_size_t(got.nbytes)) == 0
        assert (got == turn * 8 + i).all()
        assert cuda.cuMemFree_v2(address) == 0
assert room() == before, (room(), before)
print(before[0] - within[0], before[1])
"""
)


def test_what_was_freed_is_free(runner: Runner) -> None:
    result = runner.tiered(MAPPED, "-c", AGAIN)
    assert result.status == 0, result.err
    used, total = map(int, result.out.split())
    assert used == 48
    assert total <= 40 + 128
    assert result.counters["mapped_slots"] == result.counters["vram_slots_used"] == 0


IDLE = """
import pathlib, time
from ctypes import c_uint32, c_uint64
from tests.shim.softcuda.driver import MIB, Driver
cuda = Driver("libcuda.so.1")
chunks = [cuda.alloc(2 * MIB) for _ in range(30)]  # of which 20 fit VRAM
fill = cuda.function("fill_u32")
for _ in range(3):
    for address in chunks:
        cuda.launch(fill, c_uint64(address), c_uint64(16), c_uint32(1))
cuda("cuCtxSynchronize")

def wakings():
    for task in pathlib.Path("/proc/self/task").iterdir():
        if (task / "comm").read_text() == "greenboost-page\\n":
            (line,) = (x for x in (task / "status").read_text().splitlines() if x.startswith("voluntary"))
            return int(line.split()[1])

for _ in range(100):
    before = wakings()
    time.sleep(0.05)
    if wakings() == before:
        break
else:
    raise SystemExit("the pager goes on though the device has nothing to do")
"""


@pytest.mark.parametrize("flags", [MAPPED, MAPPED.replace("mapped", "auto")])
def test_an_idle_process_does_nothing(runner: Runner, flags: str) -> None:
    result = runner.tiered(flags, "-c", IDLE)
    assert result.status == 0, result.err
    assert result.counters["launches"] > 0


DIRECT = (
    BEGIN
    + """
import numpy as np
MIB = 1 << 20
held, small = [], []
for i in range(5):  # all of VRAM
    held.append(c_uint64())
    assert cuda.cuMemAlloc_v2(byref(held[i]), c_size_t(8 * MIB)) == 0
    assert cuda.cuMemsetD32_v2(held[i], ctypes.c_uint(i + 1), c_size_t(2 * MIB)) == 0
for i in range(10):  # and a quarter of it in small pieces
    small.append(c_uint64())
    assert cuda.cuMemAlloc_v2(byref(small[i]), c_size_t(MIB)) == 0
    assert cuda.cuMemsetD32_v2(small[i], ctypes.c_uint(100 + i), c_size_t(MIB // 4)) == 0
module, function = c_void_p(), c_void_p()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
assert cuda.cuModuleGetFunction(byref(function), module, b"add_u32") == 0
count = c_uint64(2 * MIB)
for address in held:
    pointers = (c_void_p * 4)(*(ctypes.addressof(p) for p in (address, address, address, count)))
    assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None) == 0
got = np.zeros(2 * MIB, dtype=np.uint32)
for i, address in enumerate(held):
    assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), address, c_size_t(got.nbytes)) == 0
    assert (got == 2 * (i + 1)).all(), i
for i, address in enumerate(small):
    assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), address, c_size_t(MIB)) == 0
    assert (got[: MIB // 4] == 100 + i).all(), i
for address in held + small:
    assert cuda.cuMemFree_v2(address) == 0
"""
)


def test_small_allocations_that_come_late_get_vram(runner: Runner) -> None:
    result = runner.tiered(MAPPED, "-c", DIRECT)
    assert result.status == 0, result.err
    counters = result.counters
    assert counters["d2h_bytes"] == counters["evictions"] * (2 << 20) >= 10 << 20
    assert counters["h2d_bytes"] == 0
    assert counters["chunks_in_place"] >= 5
    assert counters["mapped_slots"] == 0


ROWS = (
    """
import sys
sys.path.insert(0, sys.argv[1])
from random_ops import Copy2D
"""
    + BEGIN
    + """
import numpy as np
MIB = 1 << 20
address = c_uint64()
WIDTH, PITCH, HEIGHT = 5 * MIB - 4, 5 * MIB, 10  # 50 MiB: chunk borders in most rows, VRAM and RAM
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(PITCH * HEIGHT)) == 0
data = np.arange(WIDTH * HEIGHT // 4, dtype=np.uint32).reshape(HEIGHT, -1)
copy = Copy2D(srcMemoryType=1, srcHost=data.ctypes.data, srcPitch=WIDTH, dstMemoryType=2, dstDevice=address,
              dstPitch=PITCH, WidthInBytes=WIDTH, Height=HEIGHT)
assert cuda.cuMemcpy2D_v2(byref(copy)) == 0
got = np.zeros_like(data)
copy = Copy2D(dstMemoryType=1, dstHost=got.ctypes.data, dstPitch=WIDTH, srcMemoryType=2, srcDevice=address,
              srcPitch=PITCH, WidthInBytes=WIDTH, Height=HEIGHT)
assert cuda.cuMemcpy2D_v2(byref(copy)) == 0
assert (got == data).all()
one = c_uint64(address.value + 4)
words = c_size_t(WIDTH // 4 - 1)
assert cuda.cuMemsetD2D32_v2(one, c_size_t(PITCH), ctypes.c_uint(7), words, c_size_t(HEIGHT)) == 0
assert cuda.cuMemcpy2D_v2(byref(copy)) == 0
assert (got[:, 1:] == 7).all() and (got[:, 0] == data[:, 0]).all()
"""
)


def test_rows_are_cut_where_chunks_end(runner: Runner) -> None:
    result = runner.tiered(MAPPED, "-c", ROWS, PROGRAMS)
    assert result.status == 0, result.err
    assert result.counters["chunks_in_place"] > 0


def test_nvme_cannot_be_used_in_place(runner: Runner) -> None:
    result = runner.tiered(MAPPED + " --spill {dir}/spill:64MiB", "-c", "")
    assert result.status == 2
    assert "--spill: with --paging mapped memory is used in place, which NVMe cannot be" in result.err


BARE = (
    BEGIN
    + """
free, total, address = c_size_t(), c_size_t(), c_uint64()
assert cuda.cuMemGetInfo_v2(byref(free), byref(total)) == 0
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(8 << 20)) == 0
print(total.value >> 20, cuda.cuMemAlloc_v2(byref(address), c_size_t(64 << 20)))
"""
)


def test_off_leaves_all_to_the_driver(runner: Runner) -> None:
    result = runner.tiered("--paging off --chunk 2MiB --ram 128MiB", "-c", BARE)
    assert (result.status, result.out) == (0, "64 2\n"), result.err
    assert result.report["paging"] == "off"
    assert result.report["sessions"] == []
    assert "paging is off: the command had the driver's memory alone" in result.err


@pytest.mark.parametrize("flag", ["--vram 40MiB", "--trace {dir}/trace", "--record {dir}/record"])
def test_off_has_no_use_for_some_flags(runner: Runner, flag: str) -> None:
    result = runner.tiered(f"--paging off --ram 128MiB {flag}", "-c", "")
    assert result.status == 2
    assert f"{flag.split()[0]}: with --paging off the driver alone has to do with memory" in result.err


def test_the_variable_is_overruled_by_the_flag(runner: Runner) -> None:
    result = runner.tiered("--chunk 2MiB --ram 64MiB", "-c", BARE, GREENBOOST_PAGING="off")
    assert result.report["paging"] == "off"
    result = runner.tiered("--chunk 2MiB --ram 64MiB --paging auto", "-c", BARE, GREENBOOST_PAGING="off")
    assert result.report["paging"] == "auto"
    assert [session["paging"] for session in result.report["sessions"]] == ["auto"]


@pytest.mark.parametrize("where", ["--paging", "GREENBOOST_PAGING"])
def test_another_word_is_refused(runner: Runner, where: str) -> None:
    flag, variable = ("--paging on", "") if where == "--paging" else ("", "on")
    result = runner.tiered(f"--ram 64MiB {flag}", "-c", "", GREENBOOST_PAGING=variable)
    assert result.status == 2
    assert f"{where}: paging is one of auto, mapped, off, not 'on'" in result.err


@pytest.mark.parametrize(
    ("flag", "source", "limit"),
    [("--vram 20MiB", "asked", 20 << 20), ("--vram 1GiB", "available", 0), ("", "free", 0)],
)
def test_it_is_said_why_there_is_so_much_vram(runner: Runner, flag: str, source: str, limit: int) -> None:
    result = runner.tiered(f"--chunk 2MiB --ram 64MiB {flag}", "-c", BARE)
    (session,) = result.report["sessions"]
    assert session["vram_source"] == source
    assert limit in (0, session["vram_bytes"])
    assert 0 < session["vram_bytes"] <= 64 << 20
    assert result.report["chunk_source"] == "--chunk"
