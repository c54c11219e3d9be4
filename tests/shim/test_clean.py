# SPDX-License-Identifier: GPL-2.0-or-later
"""What did not change in VRAM is neither copied down nor written to NVMe again."""

from __future__ import annotations

import ctypes
import random
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .pieces import BEGIN
from .pure_c import SHIM
from .tiers import Runner

MIB = 1 << 20

READ_AGAIN = (
    BEGIN
    + """
import numpy as np
MIB = 1 << 20
passes, touched, held = int(sys.argv[1]), int(sys.argv[2]), []
for i in range(24):
    held.append(c_uint64())
    assert cuda.cuMemAlloc_v2(byref(held[i]), c_size_t(4 * MIB)) == 0
    data = np.full(MIB, i * 7919 + 1, dtype=np.uint32)
    assert cuda.cuMemcpyHtoD_v2(held[i], c_void_p(data.ctypes.data), c_size_t(data.nbytes)) == 0
got, wanted = np.zeros(MIB, dtype=np.uint32), [i * 7919 + 1 for i in range(24)]
for n in range(passes):
    for i, address in enumerate(held):
        assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), address, c_size_t(got.nbytes)) == 0
        assert (got[1:] == wanted[i]).all() and got[0] in (wanted[i], n), (n, i)
        if i < touched:
            one = np.array([n + 1], dtype=np.uint32)
            assert cuda.cuMemcpyHtoD_v2(address, c_void_p(one.ctypes.data), c_size_t(4)) == 0
"""
)


@pytest.mark.parametrize("touched", [0, 3])
def test_only_what_changed_is_written_again(runner: Runner, touched: int) -> None:
    """96 MiB in 40 of VRAM and 16 of RAM, read ten times over."""
    tiers = "--chunk 2MiB --vram 40MiB --ram 16MiB --spill {dir}/spill:256MiB"
    result = runner.tiered(tiers, "-c", READ_AGAIN, 10, touched)
    assert result.status == 0, result.err
    counters = result.counters
    assert counters["h2d_bytes"] > 10 * 40 * MIB  # so much has to come back each time
    # Of what came back, most need not go down again; which chunks T3 may keep depends on the order.
    assert counters["spill_bytes"] < 0.6 * counters["fetch_bytes"]
    assert counters["d2h_bytes"] < 0.7 * counters["h2d_bytes"]
    assert counters["evictions_clean"] > counters["evictions"] * 0.3


def test_with_room_in_ram_what_is_only_read_does_not_go_down_again(runner: Runner) -> None:
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 256MiB", "-c", READ_AGAIN, 10, 0)
    assert result.status == 0, result.err
    assert result.counters["evictions"] * 2 * MIB > 4 * 96 * MIB
    # Each once; and where arenas are made slowly, what was given up meanwhile rather than waited for.
    assert result.counters["d2h_bytes"] < 2 * 96 * MIB
    # In a loop it is known who leaves.
    assert 0 < result.counters["evictions_unplanned"] < result.counters["evictions"] / 2


FULL_AFTER_READING = (
    BEGIN
    + """
import numpy as np
MIB = 1 << 20
held, refused = [], None
got = np.zeros(MIB, dtype=np.uint32)
def check():
    for i, address in enumerate(held):
        assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), address, c_size_t(got.nbytes)) == 0
        assert (got == i * 7919 + 1).all(), i
while refused is None:
    address = c_uint64()
    refused = cuda.cuMemAlloc_v2(byref(address), c_size_t(4 * MIB)) or None
    if refused is None:
        data = np.full(MIB, len(held) * 7919 + 1, dtype=np.uint32)
        assert cuda.cuMemcpyHtoD_v2(address, c_void_p(data.ctypes.data), c_size_t(data.nbytes)) == 0
        held.append(address)
    if len(held) % 8 == 0:
        check()
check()
print(len(held) * 4)
"""
)


def test_second_copies_in_t3_take_no_room_from_anybody(runner: Runner) -> None:
    result = runner.tiered(
        "--chunk 2MiB --vram 40MiB --ram 16MiB --spill {dir}/spill:64MiB", "-c", FULL_AFTER_READING
    )
    assert result.status == 0, result.err
    assert 40 + 16 + 64 - 16 <= int(result.out) <= 40 + 16 + 64
    assert "greenboost: no tier" not in result.err


class _Checksum(ctypes.Structure):
    _fields_ = (("sum", ctypes.c_uint64 * 2),)


def _sum(lib: ctypes.CDLL, words: list[int], places: list[int] | None = None) -> tuple[int, int]:
    c = _Checksum()
    for place, word in zip(places or range(len(words)), words, strict=True):
        lib.add(ctypes.byref(c), ctypes.c_uint64(word), ctypes.c_uint64(place))
    return c.sum[0], c.sum[1]


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("checksum")
    source, out = folder / "add.c", folder / "add.so"
    source.write_text(
        """#include "kernels/checksum.h"
        void add(struct checksum *c, uint64_t word, uint64_t place) { checksum_add(c, word, place); }"""
    )
    build = ["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{SHIM}", "-o", str(out)]
    subprocess.run([*build, str(source)], check=True)
    return ctypes.CDLL(str(out))


WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=8)


@given(WORDS, st.data())
def test_a_checksum_tells_words_apart(lib: ctypes.CDLL, words: list[int], data: st.DataObject) -> None:
    at, bit = data.draw(st.integers(0, len(words) - 1)), data.draw(st.integers(0, 63))
    changed = [*words]
    changed[at] ^= 1 << bit
    before, after = _sum(lib, words), _sum(lib, changed)
    assert before[0] != after[0]
    assert before[1] != after[1]
    swapped = words[::-1]
    assert (swapped == words) == (_sum(lib, swapped) == before)


@given(WORDS, st.randoms())
def test_a_checksum_is_taken_in_any_order(lib: ctypes.CDLL, words: list[int], order: random.Random) -> None:
    places = list(range(len(words)))
    order.shuffle(places)
    assert _sum(lib, [words[p] for p in places], places) == _sum(lib, words)
