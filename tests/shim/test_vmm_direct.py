# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that programs map themselves and that is the driver's, beside what is paged."""

from __future__ import annotations

from .test_vmm import LAUNCH, right
from .tiers import Runner

SMALLER = """
# Alone it is the driver's, and can be mapped twice; beside others it is paged like them.
before = room()
one, handle = mapped(2 * MIB)
two, _ = mapped(2 * MIB, handle)
fill(one, 2 * MIB, 5)
check(two, 2 * MIB, 5)
assert before - room() == 4  # a slot less
before = room()
pool = reserve(64 * MIB)
sizes = [10, 2, 2, 6, 2, 24]
at = pool
for size in sizes:
    h = create(size * MIB)
    put(at, size * MIB, h)
    release(h)
    allow(at, size * MIB)
    at += size * MIB
total = sum(sizes) * MIB
assert before - room() == -(-total // (4 * MIB)) * 4
fill(pool, total, 9)
check(pool, total, 9)
# What was mapped by the driver stays the driver's.
assert refuses_map(pool + total, 2 * MIB, handle) == 801
unmap(pool, total)
assert room() == before
# And where small memory was first, so is all that follows.
other = reserve(64 * MIB)
put(other, 2 * MIB, create(2 * MIB))
put(other + 2 * MIB, 8 * MIB, create(8 * MIB))
allow(other, 10 * MIB)
fill(other, 10 * MIB, 1)
check(other, 10 * MIB, 1)
assert before - room() == 8  # with the first, 12 MiB: three slots
"""


def test_smaller_memory_is_as_its_place(runner: Runner) -> None:
    right(runner, SMALLER)


EXPORTED = """
prop = ctypes.create_string_buffer(struct.pack("<4i", 1, 1, 1, 0), 64)
before = room()

def shareable(size):
    handle = c_uint64()
    call("cuMemCreate", byref(handle), c_size_t(size), prop, u64(0))
    return handle.value

def share(handle):
    fd, other = c_int(), c_uint64()
    call("cuMemExportToShareableHandle", byref(fd), u64(handle), 1, u64(0))
    call("cuMemImportFromShareableHandle", byref(other), c_void_p(fd.value), 1)
    os.close(fd.value)
    return other.value

def is_shared(size):
    handle = shareable(size)
    other = share(handle)
    one, two = reserve(size), reserve(size)
    for address, mine in ((one, handle), (two, other)):
        put(address, size, mine)
        allow(address, size)
    fill(one, size, size)
    check(two, size, size)
    for address, mine in ((one, handle), (two, other)):
        unmap(address, size)
        release(mine)

fd = c_int()
is_shared(8 * MIB)
held = [create(2 * MIB) for _ in range(10)]  # all that the driver makes at once
is_shared(2 * MIB)
# Four slots stay; what cannot be shared is as it was.
large = shareable(8 * MIB)
assert refused("cuMemExportToShareableHandle", byref(fd), u64(large), 1, u64(0)) == 2
address, _ = mapped(8 * MIB, large)
fill(address, 8 * MIB, 3)
check(address, 8 * MIB, 3)
assert refused("cuMemExportToShareableHandle", byref(fd), u64(large), 1, u64(0)) == 801
unshared = create(8 * MIB)
assert refused("cuMemExportToShareableHandle", byref(fd), u64(unshared), 1, u64(0)) == 1
unmap(address, 8 * MIB)
for handle in (*held, unshared, large):
    release(handle)
assert room() == before, (room(), before)
"""


def test_what_is_not_mapped_yet_can_be_shared(runner: Runner) -> None:
    right(runner, EXPORTED)


COMPRESSIBLE = """
prop = ctypes.create_string_buffer(struct.pack("<4iQB", 1, 0, 1, 0, 0, 1), 64)
before = room()
handle = c_uint64()
call("cuMemCreate", byref(handle), c_size_t(16 * MIB), prop, u64(0))
assert before - room() == 16, (before, room())
told = ctypes.create_string_buffer(64)
call("cuMemGetAllocationPropertiesFromHandle", told, handle)
assert told.raw == prop.raw
paged, first = reserve(64 * MIB), create(8 * MIB)
put(paged, 8 * MIB, first)
assert refuses_map(paged + 16 * MIB, 16 * MIB, handle.value) == 801
unmap(paged, 8 * MIB)
release(first)
at, _ = mapped(16 * MIB, handle.value)
fill(at, 16 * MIB, 5)
release(handle.value)
check(at, 16 * MIB, 5)
assert before - room() == 16, (before, room())
unmap(at, 16 * MIB)
assert room() == before, (room(), before)
"""


def test_memory_that_slots_cannot_be_counts_beside_them(runner: Runner) -> None:
    right(runner, COMPRESSIBLE)


DIRECT = (
    LAUNCH
    + """
before = room()
# Up to half of VRAM the driver makes it at once; all beyond is promised.
small = [create(2 * MIB) for _ in range(28)]
assert before - room() == 20 + 36, (before, room())
at, big = mapped(24 * MIB)
launch(at, 24 * MIB, 3)  # more than the half
for handle in small:
    release(handle)
launch(at, 24 * MIB, 4)
check(at, 24 * MIB, 4)
unmap(at, 24 * MIB)
release(big)
assert room() == before
# Where nothing else can be mapped, the driver makes it later, as long as four slots are left.
small = [create(2 * MIB) for _ in range(13)]
places = [reserve(2 * MIB) for _ in small]
for i in range(12):
    put(places[i], 2 * MIB, small[i])
assert refuses_map(places[12], 2 * MIB, small[12]) == 2
assert before - room() == 24 + 4, (before, room())
at, big = mapped(16 * MIB)
launch(at, 16 * MIB, 5)
check(at, 16 * MIB, 5)
# It lasts while it is mapped; a handle to it can still be had.
again = c_uint64()
for handle in small:
    release(handle)
assert before - room() == 24 + 16, (before, room())
call("cuMemRetainAllocationHandle", byref(again), c_void_p(places[3] + MIB))
assert again.value == small[3]
for place in places[:12]:
    unmap(place, 2 * MIB)
assert before - room() == 4 + 16, (before, room())
release(again.value)
assert refused("cuMemRelease", u64(again.value)) == 1
unmap(at, 16 * MIB)
release(big)
assert room() == before
at, big = mapped(40 * MIB)
launch(at, 40 * MIB, 6)  # VRAM is whole again
check(at, 40 * MIB, 6)
"""
)


def test_vram_of_small_memory_is_counted(runner: Runner) -> None:
    right(runner, DIRECT)
