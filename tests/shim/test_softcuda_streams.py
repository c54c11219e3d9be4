# SPDX-License-Identifier: GPL-2.0-or-later
"""The software device's order: streams, events, default streams, and work that runs as late as it may."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_float, c_int, c_uint64, c_ulonglong, c_void_p

from .softcuda.driver import (
    INVALID_HANDLE,
    INVALID_VALUE,
    MIB,
    NON_BLOCKING,
    NOT_PERMITTED,
    NOT_READY,
    Driver,
    StreamCallback,
)
from .softcuda.harness import TIMEOUT, Gate, Log, on_device

LEGACY, PER_THREAD = 1, 2
NEVER = "3600000"
"""SOFTCUDA_LATE_MS for tests in which nothing may start by itself."""


@on_device()
def test_a_launch_returns_before_its_kernel_has_run(driver: Driver) -> None:
    gate, stream = Gate(driver), driver.stream()
    driver.launch(gate.function, stream=stream)
    assert driver.result("cuStreamQuery", stream) == NOT_READY
    gate.open()
    driver.sync(stream)
    assert gate.passed.is_set()
    assert driver.result("cuStreamQuery", stream) == 0


@on_device()
def test_a_stream_does_its_work_in_order(driver: Driver) -> None:
    log, stream = Log(driver), driver.stream()
    for number in range(3000):  # more than the queue holds at once
        log.launch(number, stream)
    driver.sync(stream)
    assert log.numbers == list(range(3000))


@on_device()
def test_streams_run_beside_each_other(driver: Driver) -> None:
    gate, log = Gate(driver), Log(driver)
    held, free = driver.stream(), driver.stream()
    driver.launch(gate.function, stream=held)
    log.launch(1, free)
    driver.sync(free)
    assert log.numbers == [1]
    assert driver.result("cuStreamQuery", held) == NOT_READY
    gate.open()
    driver("cuCtxSynchronize")
    assert gate.passed.is_set()


@on_device()
def test_events_follow_their_place_in_the_stream(driver: Driver) -> None:
    gate, stream = Gate(driver), driver.stream()
    before, after = driver.event(), driver.event()
    assert driver.result("cuEventQuery", before) == 0
    driver("cuEventSynchronize", before)
    driver("cuEventRecord", before, stream)
    driver.launch(gate.function, stream=stream)
    driver("cuEventRecord", after, stream)
    driver("cuEventSynchronize", before)
    assert driver.result("cuEventQuery", after) == NOT_READY
    assert driver.result("cuEventElapsedTime", byref(c_float()), before, after) == NOT_READY
    gate.open()
    driver("cuEventSynchronize", after)
    assert driver.elapsed(before, after) > 0
    assert driver.elapsed(after, before) < 0


@on_device()
def test_elapsed_time_is_that_of_the_work_between(driver: Driver) -> None:
    stream, start, end = driver.stream(), driver.event(), driver.event()
    driver("cuEventRecord", start, stream)
    driver.launch(driver.function("spin_ns"), c_uint64(5_000_000), stream=stream)
    driver("cuEventRecord", end, stream)
    driver.sync(stream)
    assert driver.elapsed(start, end) >= 5.0
    untimed, unrecorded = driver.event(2), driver.event()
    driver("cuEventRecord", untimed, stream)
    for event in (untimed, unrecorded):
        assert driver.result("cuEventElapsedTime", byref(c_float()), start, event) == INVALID_HANDLE


@on_device()
def test_a_stream_waits_for_anothers_event_as_it_was_recorded(driver: Driver) -> None:
    first, second, log = Gate(driver, "first"), Gate(driver, "second"), Log(driver)
    one, other, event = driver.stream(), driver.stream(), driver.event()
    driver.launch(first.function, stream=one)
    driver("cuEventRecord", event, one)
    driver("cuStreamWaitEvent", other, event, 0)
    log.launch(1, other)
    # Recorded again: who waits already waits for the first record.
    driver.launch(second.function, stream=one)
    driver("cuEventRecord", event, one)
    assert driver.result("cuStreamQuery", other) == NOT_READY
    first.open()
    driver.sync(other)
    assert log.numbers == [1]
    assert driver.result("cuEventQuery", event) == NOT_READY
    second.open()
    driver("cuEventSynchronize", event)


@on_device()
def test_waiting_for_an_event_that_was_never_recorded_is_no_wait(driver: Driver) -> None:
    stream, log = driver.stream(), Log(driver)
    driver("cuStreamWaitEvent", stream, driver.event(), 0)
    log.launch(1, stream)
    driver.sync(stream)
    assert log.numbers == [1]


@on_device()
def test_an_event_and_a_stream_may_end_before_what_waits_for_them(driver: Driver) -> None:
    gate, log = Gate(driver), Log(driver)
    one, other, event = driver.stream(), driver.stream(), driver.event()
    driver.launch(gate.function, stream=one)
    driver("cuEventRecord", event, one)
    driver("cuStreamWaitEvent", other, event, 0)
    log.launch(1, other)
    driver("cuEventDestroy_v2", event)
    driver("cuStreamDestroy_v2", one)
    gate.open()
    driver.sync(other)
    assert gate.passed.is_set()
    assert log.numbers == [1]


@on_device()
def test_the_legacy_stream_waits_for_blocking_streams_and_they_for_it(driver: Driver) -> None:
    first, second, log = Gate(driver, "first"), Gate(driver, "second"), Log(driver)
    blocking, other = driver.stream(0), driver.stream(0)
    driver.launch(first.function, stream=blocking)
    log.launch(1)  # on stream 0
    driver.launch(second.function, stream=LEGACY)
    log.launch(2, other)
    assert driver.result("cuStreamQuery", 0) == NOT_READY
    assert not second.started.is_set()
    first.open()
    assert second.started.wait(TIMEOUT)
    assert log.numbers == [1]
    assert driver.result("cuStreamQuery", other) == NOT_READY
    second.open()
    driver.sync(other)
    assert log.numbers == [1, 2]


@on_device()
def test_non_blocking_streams_do_not_care_for_the_legacy_stream(driver: Driver) -> None:
    gate, log = Gate(driver), Log(driver)
    free = driver.stream(NON_BLOCKING)
    driver.launch(gate.function)
    log.launch(1, free)
    driver.sync(free)
    gate.open()
    driver.sync()
    held = Gate(driver, "held")
    driver.launch(held.function, stream=free)
    log.launch(2)
    driver.sync(0)
    assert log.numbers == [1, 2]
    assert driver.result("cuStreamQuery", free) == NOT_READY
    held.open()


@on_device()
def test_a_synchronous_copy_is_work_of_the_legacy_stream(driver: Driver) -> None:
    stream, address = driver.stream(0), driver.alloc(4096)
    driver.launch(driver.function("spin_ns"), c_uint64(20_000_000), stream=stream)
    driver.launch(
        driver.function("fill_u32"), c_uint64(address), c_uint64(1024), ctypes.c_uint32(3), stream=stream
    )
    assert driver.read(address, 4096) == b"\3\0\0\0" * 1024


@on_device()
def test_each_thread_has_a_default_stream_of_its_own(driver: Driver) -> None:
    gate, log = Gate(driver), Log(driver)
    driver("cuLaunchKernel_ptsz", gate.function, 1, 1, 1, 1, 1, 1, 0, 0, None, None)
    assert driver.result("cuStreamQuery_ptsz", 0) == driver.result("cuStreamQuery", PER_THREAD) == NOT_READY
    mine = driver.out_after(c_ulonglong, "cuStreamGetId_ptsz", 0)
    assert mine == driver.out_after(c_ulonglong, "cuStreamGetId", PER_THREAD)
    assert mine != driver.out_after(c_ulonglong, "cuStreamGetId", 0)
    ids: list[int] = []

    def elsewhere() -> None:
        driver("cuCtxSetCurrent", driver.context)
        log.launch(1, PER_THREAD)
        driver("cuStreamSynchronize_ptsz", 0)
        ids.append(driver.out_after(c_ulonglong, "cuStreamGetId_ptsz", 0))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert log.numbers == [1]
    assert ids != [mine]
    assert driver.result("cuStreamQuery", LEGACY) == NOT_READY  # which waits for per-thread streams
    gate.open()
    driver("cuStreamSynchronize_ptsz", 0)


@on_device()
def test_host_functions_run_in_order_and_must_not_call_the_driver(driver: Driver) -> None:
    stream, log, seen = driver.stream(), Log(driver), []
    log.launch(1, stream)
    driver("cuLaunchHostFunc", stream, driver.host_function(lambda: seen.append(list(log.numbers))), None)
    log.launch(2, stream)
    calls = driver.host_function(lambda: seen.append([driver.result("cuStreamSynchronize", stream)]))
    driver("cuLaunchHostFunc", stream, calls, None)
    driver.sync(stream)
    assert seen == [[1], [NOT_PERMITTED]]
    assert driver.result("cuLaunchHostFunc", stream, None, None) == INVALID_VALUE


@on_device()
def test_a_stream_callback_gets_its_stream_and_data(driver: Driver) -> None:
    stream, seen = driver.stream(), []
    callback = StreamCallback(lambda *args: seen.append(args))
    driver("cuStreamAddCallback", stream, callback, 77, 0)
    driver.sync(stream)
    assert seen == [(stream, 0, 77)]
    assert driver.result("cuStreamAddCallback", stream, callback, 0, 1) == INVALID_VALUE


@on_device()
def test_a_stream_tells_what_it_was_made_with(driver: Driver) -> None:
    stream = driver.out(c_void_p, "cuStreamCreateWithPriority", NON_BLOCKING, -3)
    assert driver.out_after(ctypes.c_uint, "cuStreamGetFlags", stream) == NON_BLOCKING
    assert driver.out_after(c_int, "cuStreamGetPriority", stream) == -3
    assert driver.out_after(c_void_p, "cuStreamGetCtx", stream) == driver.context
    assert driver.out_after(c_int, "cuStreamGetDevice", stream) == 0


@on_device()
def test_handles_that_are_none_are_refused(driver: Driver) -> None:
    event = driver.event()
    for name, args in (
        ("cuStreamSynchronize", (event,)),
        ("cuStreamQuery", (event,)),
        ("cuStreamDestroy_v2", (0,)),
        ("cuStreamDestroy_v2", (event,)),
        ("cuEventQuery", (driver.stream(),)),
        ("cuEventSynchronize", (0,)),
        ("cuEventDestroy_v2", (0,)),
        ("cuEventRecord", (driver.stream(), 0)),
        ("cuStreamWaitEvent", (0, 0, 0)),
    ):
        assert driver.result(name, *args) == INVALID_HANDLE, name
    assert driver.result("cuStreamCreate", byref(c_void_p()), 6) == INVALID_VALUE
    assert driver.result("cuEventCreate", byref(c_void_p()), 8) == INVALID_VALUE


@on_device(DEVICES="2")
def test_an_event_belongs_to_a_context(driver: Driver) -> None:
    event = driver.event()
    driver("cuCtxSetCurrent", driver.out(c_void_p, "cuDevicePrimaryCtxRetain", 1))
    stream = driver.stream()
    assert driver.result("cuEventRecord", event, stream) == INVALID_HANDLE
    driver("cuStreamWaitEvent", stream, event, 0)  # which may cross


@on_device(LATE="1", LATE_MS=NEVER)
def test_late_work_starts_when_it_is_waited_for(driver: Driver) -> None:
    pinned, address, stream = driver.pinned(4), driver.alloc(4), driver.stream()
    driver("cuMemsetD32Async", address, 0x01020304, 1, stream)
    driver("cuMemcpyDtoHAsync_v2", pinned, address, 4, stream)
    assert bytes(pinned) == bytes(4)  # nobody has waited
    driver.sync(stream)
    assert bytes(pinned) == b"\4\3\2\1"


@on_device(LATE="1", LATE_MS=NEVER)
def test_late_work_starts_for_everything_that_waits(driver: Driver) -> None:
    log = Log(driver)
    one, other, blocking, event = driver.stream(), driver.stream(), driver.stream(0), driver.event()
    log.launch(1, one)
    driver("cuEventRecord", event, one)
    driver("cuEventSynchronize", event)
    assert log.numbers == [1]
    log.launch(2, one)
    driver("cuEventRecord", event, one)
    driver("cuStreamWaitEvent", other, event, 0)
    log.launch(3, other)
    driver.sync(other)
    assert log.numbers == [1, 2, 3]
    log.launch(4, blocking)
    driver.read(driver.alloc(4), 4)
    assert log.numbers == [1, 2, 3, 4]
    log.launch(5, one)
    driver("cuCtxSynchronize")
    log.launch(6, one)
    driver("cuMemFree_v2", driver.alloc(4))
    assert log.numbers == [1, 2, 3, 4, 5, 6]


@on_device(LATE="1", LATE_MS=NEVER)
def test_late_work_is_not_there_at_the_first_question_and_is_in_the_end(driver: Driver) -> None:
    log, stream, event = Log(driver), driver.stream(), driver.event()
    log.launch(1, stream)
    driver("cuEventRecord", event, stream)
    assert driver.result("cuEventQuery", event) == NOT_READY
    while driver.result("cuEventQuery", event) == NOT_READY:
        pass
    assert log.numbers == [1]


@on_device(LATE="1", LATE_MS="50")
def test_late_work_that_nobody_waits_for_runs_after_all(driver: Driver) -> None:
    done = threading.Event()
    driver("cuLaunchHostFunc", driver.stream(), driver.host_function(done.set), None)
    assert done.wait(TIMEOUT)


@on_device(LATE="1", LATE_MS=NEVER)
def test_a_full_queue_of_late_work_goes_on(driver: Driver) -> None:
    log, stream = Log(driver), driver.stream()
    for number in range(3000):
        log.launch(number, stream)
    driver.sync(stream)
    assert log.numbers == list(range(3000))


@on_device(LATE="1", LATE_MS=NEVER)
def test_pinned_sources_are_read_late_and_pageable_ones_at_once(driver: Driver) -> None:
    stream, address = driver.stream(), driver.alloc(MIB)
    pinned, pageable = driver.pinned(4), ctypes.create_string_buffer(b"old!", 4)
    pinned.raw = b"old!"
    driver("cuMemcpyHtoDAsync_v2", address, pinned, 4, stream)
    driver("cuMemcpyHtoDAsync_v2", address + 4, pageable, 4, stream)
    pinned.raw = pageable.raw = b"new!"
    driver.sync(stream)
    assert driver.read(address, 8) == b"new!old!"


@on_device(LATE="1", LATE_MS=NEVER)
def test_a_copy_to_pageable_memory_is_waited_for(driver: Driver) -> None:
    stream, address = driver.stream(), driver.alloc(4)
    driver("cuMemsetD8Async", address, 7, 4, stream)
    buffer = ctypes.create_string_buffer(4)
    driver("cuMemcpyDtoHAsync_v2", buffer, address, 4, stream)
    assert buffer.raw == b"\7\7\7\7"


@on_device(LATE="1", LATE_MS=NEVER)
def test_late_work_of_a_destroyed_stream_is_still_done(driver: Driver) -> None:
    log, stream = Log(driver), driver.stream()
    log.launch(1, stream)
    driver("cuStreamDestroy_v2", stream)
    driver("cuCtxSynchronize")
    assert log.numbers == [1]


@on_device()
def test_many_threads_use_many_streams(driver: Driver) -> None:
    add, threads = driver.function("add_u32"), []
    failures: list[str] = []

    def work(seed: int) -> None:
        driver("cuCtxSetCurrent", driver.context)
        stream, event = driver.stream(seed % 2), driver.event()
        for _ in range(30):
            address = driver.alloc(3 * 4096)
            driver("cuMemsetD32Async", address, seed, 1024, stream)
            driver("cuMemsetD32Async", address + 4096, 1000, 1024, stream)
            target = address + 8192
            driver.launch(add, *map(c_uint64, (target, address, address + 4096, 1024)), stream=stream)
            driver("cuEventRecord", event, stream)
            driver("cuEventSynchronize", event)
            if driver.read(target, 4096) != (1000 + seed).to_bytes(4, "little") * 1024:
                failures.append(f"thread {seed}")
            driver("cuMemFree_v2", address)
        driver("cuEventDestroy_v2", event)
        driver("cuStreamDestroy_v2", stream)

    for seed in range(8):
        threads.append(threading.Thread(target=work, args=(seed,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert driver.free_bytes() == 64 * MIB
