# SPDX-License-Identifier: GPL-2.0-or-later
"""The software device's memory: sizes, addresses, mappings, and what the driver refuses."""

from __future__ import annotations

import ctypes
import mmap
import os
from ctypes import byref, c_bool, c_int, c_size_t, c_uint64, c_ulonglong, c_void_p
from typing import Any

from .softcuda.driver import (
    ALREADY_REGISTERED,
    DEVICE,
    HOST,
    INVALID_DEVICE,
    INVALID_VALUE,
    MIB,
    NOT_FOUND,
    NOT_REGISTERED,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    READ,
    READ_WRITE,
    UNIT,
    AccessDesc,
    AllocationProp,
    Driver,
    Location,
)
from .softcuda.harness import Gate, on_device

VRAM = 64 * MIB
PLACE = 32 * MIB  # at multiples the driver heeds a place; of less it may have some already


def buffer_address(buffer: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@on_device()
def test_vram_has_the_size_asked_for_to_the_byte_when_created(driver: Driver) -> None:
    assert driver.out(c_size_t, "cuDeviceTotalMem_v2", 0) == VRAM
    handles = [driver.create() for _ in range(VRAM // UNIT)]
    assert driver.free_bytes() == 0
    prop = AllocationProp(type=1, location=Location(1, 0))
    handle = c_uint64()
    assert driver.result("cuMemCreate", byref(handle), UNIT, byref(prop), 0) == OUT_OF_MEMORY
    driver("cuMemRelease", handles.pop())
    driver.create()


@on_device()
def test_vram_has_the_size_asked_for_to_the_byte_when_allocated(driver: Driver) -> None:
    addresses = [driver.alloc(MIB) for _ in range(VRAM // MIB)]
    address = c_uint64()
    assert driver.result("cuMemAlloc_v2", byref(address), 1) == OUT_OF_MEMORY
    for one in addresses:
        driver("cuMemFree_v2", one)
    assert driver.free_bytes() == VRAM
    driver("cuMemFree_v2", driver.alloc(VRAM))
    assert driver.result("cuMemAlloc_v2", byref(address), VRAM + 1) == OUT_OF_MEMORY


@on_device(VRAM="4MiB")
def test_small_allocations_share_vram_and_give_it_back(driver: Driver) -> None:
    addresses = [driver.alloc(100) for _ in range(1000)]
    assert len(set(addresses)) == 1000
    assert all(address % 512 == 0 for address in addresses)
    assert 4 * MIB - driver.free_bytes() == 512 * 1024
    for number, address in enumerate(addresses):
        driver.write(address, number.to_bytes(4, "little") * 25)
    assert all(
        driver.read(address, 100) == number.to_bytes(4, "little") * 25
        for number, address in enumerate(addresses)
    )
    for address in addresses:
        driver("cuMemFree_v2", address)
    assert driver.free_bytes() == 4 * MIB


@on_device()
def test_scattered_free_memory_serves_one_allocation(driver: Driver) -> None:
    addresses = [driver.alloc(MIB) for _ in range(VRAM // MIB)]
    for address in addresses[::2]:
        driver("cuMemFree_v2", address)
    address = driver.alloc(VRAM // 2)
    data = bytes(range(256)) * (VRAM // 2 // 256)
    driver.write(address, data)
    assert driver.read(address, VRAM // 2) == data


@on_device()
def test_allocations_that_make_no_sense_are_refused(driver: Driver) -> None:
    address = c_uint64()
    assert driver.result("cuMemAlloc_v2", byref(address), 0) == INVALID_VALUE
    assert driver.result("cuMemAlloc_v2", None, 512) == INVALID_VALUE
    assert driver.result("cuMemAlloc_v2", byref(address), 1 << 60) == OUT_OF_MEMORY
    assert driver.result("cuMemAllocPitch_v2", byref(address), byref(c_size_t()), 4, 4, 3) == INVALID_VALUE


@on_device()
def test_free_takes_an_allocations_start_once(driver: Driver) -> None:
    address = driver.alloc(MIB)
    assert driver.result("cuMemFree_v2", address + 512) == INVALID_VALUE
    driver("cuMemFree_v2", address)
    assert driver.result("cuMemFree_v2", address) == INVALID_VALUE
    assert driver.result("cuMemFree_v2", 0) == 0


@on_device()
def test_freeing_waits_for_kernels_that_may_use_the_memory(driver: Driver) -> None:
    address = driver.alloc(MIB)
    stream = driver.stream()
    driver.launch(driver.function("spin_ns"), c_uint64(20_000_000), stream=stream)
    driver.launch(
        driver.function("fill_u32"), c_uint64(address), c_uint64(4), ctypes.c_uint32(1), stream=stream
    )
    driver("cuMemFree_v2", address)
    assert driver.result("cuStreamQuery", stream) == 0


@on_device()
def test_pitch_rows_are_aligned(driver: Driver) -> None:
    address, pitch = c_uint64(), c_size_t()
    driver("cuMemAllocPitch_v2", byref(address), byref(pitch), 1000, 10, 4)
    assert pitch.value == 1024
    driver.write(address.value, b"x" * 10240)
    assert driver.result("cuMemcpyHtoD_v2", address.value, b"x" * 10241, 10241) == INVALID_VALUE


@on_device(POISON="1")
def test_poisoned_memory_is_nan_in_every_format(driver: Driver) -> None:
    address = driver.alloc(MIB)
    assert driver.read(address, MIB) == b"\xff" * MIB
    driver.write(address, bytes(MIB))
    driver("cuMemFree_v2", address)
    virtual = driver.reserve(VRAM)
    driver.map(virtual, driver.create(VRAM), VRAM)
    assert driver.read(virtual, VRAM) == b"\xff" * VRAM


@on_device(DEVICES="2")
def test_each_device_has_its_own_vram(driver: Driver) -> None:
    driver.create(VRAM, device=1)
    assert driver.free_bytes() == VRAM
    other = driver.out(c_void_p, "cuDevicePrimaryCtxRetain", 1)
    driver("cuCtxSetCurrent", other)
    assert driver.free_bytes() == 0


@on_device()
def test_a_handle_mapped_twice_is_the_same_memory(driver: Driver) -> None:
    handle = driver.create()
    first, second = driver.reserve(UNIT), driver.reserve(UNIT)
    driver.map(first, handle)
    driver.map(second, handle)
    driver.write(first + 12345, b"through the one")
    assert driver.read(second + 12345, 15) == b"through the one"
    driver.write(second, b"through the other")
    assert driver.read(first, 17) == b"through the other"


@on_device()
def test_memory_moves_between_addresses_with_its_contents(driver: Driver) -> None:
    handle = driver.create()
    first, second = driver.reserve(UNIT), driver.reserve(UNIT)
    driver.map(first, handle)
    driver.write(first, b"kept")
    driver("cuMemUnmap", first, UNIT)
    driver.map(second, handle)
    assert driver.read(second, 4) == b"kept"


@on_device()
def test_mapped_memory_is_out_of_reach_until_access_is_set(driver: Driver) -> None:
    address = driver.reserve(UNIT)
    driver("cuMemMap", address, UNIT, 0, driver.create(), 0)
    assert driver.result("cuMemcpyHtoD_v2", address, b"x", 1) == INVALID_VALUE
    driver.access(address, UNIT)
    driver.write(address, b"x")


@on_device()
def test_access_is_told_and_must_be_set_for_whole_mappings(driver: Driver) -> None:
    address = driver.reserve(2 * UNIT)
    for offset in (0, UNIT):
        driver("cuMemMap", address + offset, UNIT, 0, driver.create(), 0)
    driver.access(address, 2 * UNIT, READ)
    flags = c_ulonglong()
    driver("cuMemGetAccess", byref(flags), byref(Location(1, 0)), address + UNIT)
    assert flags.value == READ

    def refused(start: int, size: int, device: int = 0, kind: int = 1, access: int = READ_WRITE) -> int:
        description = AccessDesc(Location(kind, device), access)
        return driver.result("cuMemSetAccess", start, size, byref(description), 1)

    assert refused(address, MIB) == INVALID_VALUE
    assert refused(address + MIB, UNIT) == INVALID_VALUE
    assert refused(address, 3 * UNIT) == INVALID_VALUE
    assert refused(address, UNIT, access=2) == INVALID_VALUE
    assert refused(address, UNIT, device=1) == INVALID_DEVICE
    assert refused(address, UNIT, kind=2) == NOT_SUPPORTED


@on_device()
def test_unmap_takes_whole_mappings(driver: Driver) -> None:
    address = driver.reserve(4 * UNIT)
    driver.map(address, driver.create(2 * UNIT), 2 * UNIT)
    driver.map(address + 2 * UNIT, driver.create(2 * UNIT), 2 * UNIT)
    assert driver.result("cuMemUnmap", address, UNIT) == INVALID_VALUE
    assert driver.result("cuMemUnmap", address + UNIT, UNIT) == INVALID_VALUE
    assert driver.result("cuMemUnmap", address, 3 * UNIT) == INVALID_VALUE
    driver("cuMemUnmap", address, 4 * UNIT)
    assert driver.result("cuMemUnmap", address, 4 * UNIT) == INVALID_VALUE


@on_device()
def test_map_refuses_what_the_driver_refuses(driver: Driver) -> None:
    address, handle = driver.reserve(2 * UNIT), driver.create()

    def map_(start: int, size: int, offset: int, memory: int, flags: int = 0) -> int:
        return driver.result("cuMemMap", start, size, offset, memory, flags)

    assert map_(address, MIB, 0, handle) == INVALID_VALUE
    assert map_(address + MIB, UNIT, 0, handle) == INVALID_VALUE
    assert map_(address, 2 * UNIT, 0, handle) == INVALID_VALUE
    assert map_(address, 0, 0, handle) == INVALID_VALUE
    assert map_(address, UNIT, UNIT, handle) == INVALID_VALUE
    assert map_(address, UNIT, 0, handle, 1) == INVALID_VALUE
    assert map_(address, UNIT, 0, handle + 1) == INVALID_VALUE
    assert map_(address, UNIT, 0, 0) == INVALID_VALUE
    assert map_(address + 2 * UNIT, UNIT, 0, handle) == INVALID_VALUE
    large = driver.create(2 * UNIT)
    assert map_(address, UNIT, 0, large) == map_(address, UNIT, UNIT, large) == NOT_SUPPORTED
    assert map_(address, UNIT, 0, handle) == 0
    assert map_(address, UNIT, 0, driver.create()) == INVALID_VALUE
    plain = driver.alloc(UNIT)
    assert map_(plain, UNIT, 0, handle) == INVALID_VALUE


@on_device()
def test_released_memory_lives_while_it_is_mapped(driver: Driver) -> None:
    handle = driver.create()
    address = driver.reserve(2 * UNIT)
    driver.map(address, handle)
    driver("cuMemRelease", handle)
    assert driver.result("cuMemRelease", handle) == INVALID_VALUE
    assert driver.result("cuMemMap", address + UNIT, UNIT, 0, handle, 0) == INVALID_VALUE
    driver.write(address, b"still there")
    again = driver.out(c_uint64, "cuMemRetainAllocationHandle", address + 77)
    assert again == handle
    driver("cuMemUnmap", address, UNIT)
    assert driver.free_bytes() == VRAM - UNIT
    driver("cuMemRelease", again)
    assert driver.free_bytes() == VRAM
    assert driver.result("cuMemRelease", again) == INVALID_VALUE


@on_device()
def test_creation_refuses_what_the_driver_refuses(driver: Driver) -> None:
    def create(size: int, **fields: Any) -> int:
        prop = AllocationProp(**({"type": 1, "location": Location(1, 0)} | fields))
        return driver.result("cuMemCreate", byref(c_uint64()), size, byref(prop), 0)

    assert create(MIB) == INVALID_VALUE
    assert create(0) == INVALID_VALUE
    assert create(UNIT, type=0) == INVALID_VALUE
    assert create(UNIT, location=Location(1, 1)) == INVALID_DEVICE
    assert create(UNIT, location=Location(2, 0)) == NOT_SUPPORTED
    assert create(UNIT, requestedHandleTypes=2) == NOT_SUPPORTED
    prop = AllocationProp(type=1, location=Location(1, 0))
    assert driver.out(c_size_t, "cuMemGetAllocationGranularity", byref(prop), 0) == UNIT


@on_device()
def test_memory_is_shared_by_a_file(driver: Driver) -> None:
    prop = AllocationProp(type=1, location=Location(1, 0), requestedHandleTypes=1)
    handle = driver.out(c_uint64, "cuMemCreate", UNIT, byref(prop), 0)
    assert (
        driver.result("cuMemExportToShareableHandle", byref(c_int()), driver.create(), 1, 0) == INVALID_VALUE
    )
    assert driver.result("cuMemExportToShareableHandle", byref(c_int()), handle, 2, 0) == INVALID_VALUE
    file = c_int()
    driver("cuMemExportToShareableHandle", byref(file), handle, 1, 0)
    again = driver.out(c_uint64, "cuMemImportFromShareableHandle", file.value, 1)
    one, other = driver.reserve(UNIT), driver.reserve(UNIT)
    driver.map(one, handle)
    driver.map(other, again)
    driver.write(one, b"the same")
    assert driver.read(other, 8) == b"the same"
    for address in (one, other):
        driver("cuMemUnmap", address, UNIT)
    driver("cuMemRelease", handle)
    driver("cuMemRelease", again)
    assert driver.result("cuMemImportFromShareableHandle", byref(c_uint64()), file.value, 1) == INVALID_VALUE
    os.close(file.value)


@on_device()
def test_reservations_honour_alignment_and_a_free_hint(driver: Driver) -> None:
    assert driver.reserve(UNIT, 64 * MIB) % (64 * MIB) == 0
    first = driver.reserve(8 * PLACE, PLACE)
    driver("cuMemAddressFree", first, 8 * PLACE)
    assert driver.reserve(PLACE, hint=first + PLACE + UNIT) != first + PLACE + UNIT
    assert driver.reserve(PLACE, hint=first + 2 * PLACE) == first + 2 * PLACE
    assert driver.reserve(PLACE, hint=first + 2 * PLACE) != first + 2 * PLACE
    # Outside what the device keeps for itself, too: next to host memory that the program placed.
    hole = mmap.mmap(-1, 2 * PLACE)
    hint = (buffer_address(hole) + PLACE - 1) // PLACE * PLACE
    assert driver.reserve(PLACE, hint=hint) != hint
    hole.close()
    assert driver.reserve(PLACE, hint=hint) == hint
    driver.map(hint, driver.create())
    driver.write(hint, b"x")


@on_device()
def test_reservations_that_make_no_sense_are_refused(driver: Driver) -> None:
    address = c_uint64()

    def reserve(size: int, alignment: int = 0, flags: int = 0) -> int:
        return driver.result("cuMemAddressReserve", byref(address), size, alignment, 0, flags)

    assert reserve(0) == INVALID_VALUE
    assert reserve(MIB) == INVALID_VALUE
    assert reserve(UNIT, 3 * UNIT) == INVALID_VALUE
    assert reserve(UNIT, flags=1) == INVALID_VALUE
    assert reserve(1 << 50) == OUT_OF_MEMORY


@on_device()
def test_a_range_is_freed_whole_and_empty(driver: Driver) -> None:
    address = driver.reserve(2 * UNIT)
    driver.map(address, driver.create())
    assert driver.result("cuMemAddressFree", address, 2 * UNIT) == INVALID_VALUE
    driver("cuMemUnmap", address, UNIT)
    assert driver.result("cuMemAddressFree", address, UNIT) == INVALID_VALUE
    driver("cuMemAddressFree", address, 2 * UNIT)
    assert driver.result("cuMemAddressFree", address, 2 * UNIT) == INVALID_VALUE
    assert driver.result("cuMemAddressFree", driver.alloc(UNIT), UNIT) == INVALID_VALUE


@on_device()
def test_a_freed_address_is_not_soon_given_again(driver: Driver) -> None:
    addresses = set()
    for _ in range(100):
        address = driver.alloc(UNIT)
        driver("cuMemFree_v2", address)
        addresses.add(address)
    assert len(addresses) == 100


@on_device()
def test_copies_cross_borders_of_mappings_and_of_nothing_else(driver: Driver) -> None:
    address = driver.reserve(4 * UNIT)
    for index in (0, 1, 3):
        driver.map(address + index * UNIT, driver.create())
    data = bytes(range(256)) * 8192
    driver.write(address + MIB, data)
    assert driver.read(address + MIB, UNIT) == data
    hole = address + UNIT + MIB
    assert driver.result("cuMemcpyHtoD_v2", hole, data, UNIT) == INVALID_VALUE
    assert driver.result("cuMemcpyDtoH_v2", ctypes.create_string_buffer(UNIT), hole, UNIT) == INVALID_VALUE
    assert driver.result("cuMemcpyDtoD_v2", address, hole, UNIT) == INVALID_VALUE
    assert driver.result("cuMemsetD8_v2", hole, 0, UNIT) == INVALID_VALUE
    assert driver.result("cuMemsetD8Async", address + 2 * UNIT, 0, 1, 0) == INVALID_VALUE
    # Each allocation is an object of its own, wherever it lies.
    plain = driver.alloc(UNIT)
    assert driver.result("cuMemsetD8_v2", plain, 0, UNIT + 1) == INVALID_VALUE


@on_device()
def test_a_kernel_crosses_into_host_memory_and_a_copy_does_not(driver: Driver) -> None:
    hole = mmap.mmap(-1, 2 * PLACE + UNIT)
    start = (buffer_address(hole) + PLACE - 1) // PLACE * PLACE
    hole.close()
    end = start + PLACE
    assert driver.reserve(PLACE, hint=start) == start
    driver.map(end - UNIT, driver.create())
    libc = ctypes.CDLL(None)
    libc.mmap.restype = c_void_p
    fixed, private, anonymous = 0x10, 0x02, 0x20
    flags = fixed | private | anonymous
    host = libc.mmap(c_void_p(end), c_size_t(UNIT), 3, flags, -1, c_size_t(0))
    assert host == end
    driver("cuMemHostRegister_v2", host, UNIT, 3)
    border = host - 8
    driver.launch(driver.function("fill_u32"), c_uint64(border), c_uint64(4), ctypes.c_uint32(7))
    driver.sync()
    assert driver.read(border, 8) + driver.read(host, 8) == b"\7\0\0\0" * 4
    assert driver.result("cuMemcpyHtoD_v2", border, bytes(16), 16) == INVALID_VALUE
    assert driver.result("cuMemsetD8_v2", border, 0, 16) == INVALID_VALUE


@on_device()
def test_registered_memory_has_its_own_address_on_the_device(driver: Driver) -> None:
    memory = mmap.mmap(-1, MIB)
    address = buffer_address(memory)
    driver("cuMemHostRegister_v2", address, MIB, 3)
    assert driver.out(c_uint64, "cuMemHostGetDevicePointer_v2", address + 5, 0) == address + 5
    assert driver.out(ctypes.c_uint, "cuMemHostGetFlags", address) == 3
    driver.launch(driver.function("fill_u32"), c_uint64(address), c_uint64(4), ctypes.c_uint32(9))
    driver.sync()
    assert memory[:16] == b"\t\0\0\0" * 4
    assert driver.result("cuMemHostRegister_v2", address + 4096, 4096, 0) == ALREADY_REGISTERED
    assert driver.result("cuMemHostUnregister", address + 4096) == NOT_REGISTERED
    assert driver.result("cuMemFreeHost", address) == INVALID_VALUE
    driver("cuMemHostUnregister", address)
    assert driver.result("cuMemHostUnregister", address) == NOT_REGISTERED
    assert driver.result("cuMemsetD8_v2", address, 0, 1) == INVALID_VALUE


@on_device()
def test_registering_what_is_no_host_memory_is_refused(driver: Driver) -> None:
    memory = mmap.mmap(-1, MIB)
    address = buffer_address(memory)
    assert driver.result("cuMemHostRegister_v2", address, 0, 0) == INVALID_VALUE
    assert driver.result("cuMemHostRegister_v2", address, MIB, 0x100) == INVALID_VALUE
    assert driver.result("cuMemHostRegister_v2", 4096, 4096, 0) == INVALID_VALUE
    assert driver.result("cuMemHostRegister_v2", driver.alloc(UNIT), UNIT, 0) == INVALID_VALUE


@on_device()
def test_a_host_range_that_is_half_registered_is_refused(driver: Driver) -> None:
    memory = mmap.mmap(-1, MIB)
    address = buffer_address(memory)
    device = driver.alloc(MIB)
    driver("cuMemHostRegister_v2", address, MIB // 2, 0)
    assert driver.result("cuMemcpyHtoD_v2", device, c_void_p(address), MIB) == INVALID_VALUE
    # In pieces is how some programs register large buffers: that is whole.
    driver("cuMemHostRegister_v2", address + MIB // 2, MIB // 2, 0)
    driver("cuMemcpyHtoD_v2", device, c_void_p(address), MIB)


@on_device()
def test_unregistering_waits_for_every_running_kernel(driver: Driver) -> None:
    memory = mmap.mmap(-1, MIB)
    address = buffer_address(memory)
    driver("cuMemHostRegister_v2", address, MIB, 0)
    done: list[bool] = []
    gate = Gate(driver)
    driver.launch(gate.function, stream=driver.stream())
    finish = driver.register("finish", lambda params: done.append(True))
    driver.launch(driver.function("spin_ns"), c_uint64(20_000_000), stream=driver.stream())
    driver.launch(finish)
    gate.open()
    driver("cuMemHostUnregister", address)
    assert gate.passed.is_set()
    assert done == [True]


@on_device()
def test_host_memory_from_the_driver_is_zeroed_and_freed_once(driver: Driver) -> None:
    address = driver.out(c_void_p, "cuMemAllocHost_v2", MIB)
    assert bytes((ctypes.c_char * MIB).from_address(address)) == bytes(MIB)
    assert driver.result("cuMemHostUnregister", address) == NOT_REGISTERED
    driver("cuMemFreeHost", address)
    assert driver.result("cuMemFreeHost", address) == INVALID_VALUE


@on_device()
def test_stream_ordered_memory_is_freed_in_the_streams_order(driver: Driver) -> None:
    stream, gate = driver.stream(), Gate(driver)
    address = driver.out(c_uint64, "cuMemAllocAsync", VRAM, stream)
    driver.launch(gate.function, stream=stream)
    driver("cuMemFreeAsync", address, stream)
    assert driver.free_bytes() == 0
    assert driver.result("cuMemFreeAsync", address, stream) == INVALID_VALUE
    gate.open()
    # Nothing is free, but something will be.
    again = driver.out(c_uint64, "cuMemAllocAsync", VRAM, stream)
    assert gate.passed.is_set()
    driver("cuMemFreeAsync", again, stream)
    driver.sync(stream)
    assert driver.free_bytes() == VRAM


@on_device(DEVICES="2")
def test_pools_belong_to_a_device(driver: Driver) -> None:
    pools = [driver.out(c_void_p, "cuDeviceGetDefaultMemPool", device) for device in (0, 1)]
    assert driver.out(c_void_p, "cuDeviceGetMemPool", 1) == pools[1]
    stream = driver.stream()
    address = c_uint64()
    driver("cuMemAllocFromPoolAsync", byref(address), MIB, pools[0], stream)
    assert driver.result("cuMemAllocFromPoolAsync", byref(address), MIB, pools[1], stream) == INVALID_VALUE
    threshold = c_uint64(123)
    driver("cuMemPoolSetAttribute", pools[0], 4, byref(threshold))
    told = c_uint64()
    driver("cuMemPoolGetAttribute", pools[0], 4, byref(told))
    assert told.value == 123
    assert driver.result("cuMemPoolDestroy", pools[0]) == INVALID_VALUE


@on_device()
def test_an_address_says_what_it_is(driver: Driver) -> None:
    plain = driver.alloc(3000)
    mapped = driver.reserve(2 * UNIT)
    driver.map(mapped, driver.create())
    driver.map(mapped + UNIT, driver.create())
    host = ctypes.addressof(driver.pinned(5000))

    def ask(kind: Any, attribute: int, address: int) -> int:
        value = kind()
        driver("cuPointerGetAttribute", byref(value), attribute, address)
        return int(value.value)

    assert ask(c_int, 2, plain + 1) == ask(c_int, 2, mapped) == DEVICE
    assert ask(c_int, 2, host) == HOST
    assert ask(c_uint64, 3, host + 9) == host + 9
    assert ask(c_uint64, 1, plain) == driver.context
    assert (ask(c_uint64, 11, plain + 1), ask(c_size_t, 12, plain + 1)) == (plain, 3000)
    assert (ask(c_uint64, 11, mapped + UNIT + 1), ask(c_size_t, 12, mapped)) == (mapped + UNIT, UNIT)
    assert ask(c_bool, 8, plain) == 0
    assert len({ask(c_uint64, 7, address) for address in (plain, mapped, mapped + UNIT, host)}) == 4
    unknown = c_uint64()
    assert driver.result("cuPointerGetAttribute", byref(unknown), 4, plain) == INVALID_VALUE
    assert driver.result("cuPointerGetAttribute", byref(unknown), 2, id(unknown)) == INVALID_VALUE
    assert driver.out2(c_uint64, "cuMemGetAddressRange_v2", plain + 2999) == (plain, 3000)
    base, size = c_uint64(), c_size_t()
    assert driver.result("cuMemGetAddressRange_v2", byref(base), byref(size), plain + 3000) == NOT_FOUND


@on_device()
def test_attributes_in_one_go_do_not_fail_for_unknown_addresses(driver: Driver) -> None:
    kind, start, ordinal = c_int(9), c_uint64(9), c_int(9)
    wanted = (c_int * 3)(2, 11, 9)
    data = (c_void_p * 3)(*(ctypes.addressof(value) for value in (kind, start, ordinal)))
    driver("cuPointerGetAttributes", 3, wanted, data, id(driver))
    assert (kind.value, start.value, ordinal.value) == (0, 0, -2)
    address = driver.alloc(512)
    driver("cuPointerGetAttributes", 3, wanted, data, address)
    assert (kind.value, start.value, ordinal.value) == (DEVICE, address, 0)
    wanted[1] = 99
    assert driver.result("cuPointerGetAttributes", 3, wanted, data, address) == INVALID_VALUE
