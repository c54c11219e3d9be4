# SPDX-License-Identifier: GPL-2.0-or-later
"""The software device's graphs: captured from streams, built by hand, and replayed."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

from .softcuda.driver import (
    CAPTURE_IMPLICIT,
    CAPTURE_INVALIDATED,
    CAPTURE_ISOLATION,
    CAPTURE_MERGE,
    CAPTURE_UNJOINED,
    CAPTURE_UNMATCHED,
    CAPTURE_UNSUPPORTED,
    CAPTURE_WRONG_THREAD,
    CAPTURED_EVENT,
    DEVICE,
    HOST,
    ILLEGAL_STATE,
    INVALID_VALUE,
    MIB,
    Driver,
    HostNodeParams,
    KernelNodeParams,
    LaunchConfig,
    Memcpy3D,
    MemsetNodeParams,
    pointers,
)
from .softcuda.harness import Gate, Log, on_device

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
NONE, ACTIVE, INVALIDATED = 0, 1, 2


def begin(driver: Driver, stream: int, mode: int = GLOBAL) -> None:
    driver("cuStreamBeginCapture_v2", stream, mode)


def end(driver: Driver, stream: int) -> int:
    return driver.out_after(c_void_p, "cuStreamEndCapture", stream)


def end_result(driver: Driver, stream: int) -> int:
    return driver.result("cuStreamEndCapture", stream, byref(c_void_p()))


def status(driver: Driver, stream: int) -> int:
    return driver.out_after(c_int, "cuStreamIsCapturing", stream)


def instantiate(driver: Driver, graph: int) -> int:
    return driver.out(c_void_p, "cuGraphInstantiateWithFlags", graph, 0)


def node_count(driver: Driver, graph: int) -> int:
    count = c_size_t()
    driver("cuGraphGetNodes", graph, None, byref(count))
    return count.value


@on_device()
def test_a_captured_stream_runs_nothing_until_its_graph_is_launched(driver: Driver) -> None:
    stream, log, address = driver.stream(), Log(driver), driver.alloc(4096)
    pinned, host_calls = driver.pinned(8), []
    begin(driver, stream)
    assert status(driver, stream) == ACTIVE
    driver("cuMemsetD32Async", address, 5, 2, stream)
    driver.launch(driver.function("add_u32"), *map(c_uint64, (address, address, address, 1)), stream=stream)
    driver("cuMemcpyDtoHAsync_v2", pinned, address, 8, stream)
    driver("cuLaunchHostFunc", stream, driver.host_function(lambda: host_calls.append(pinned.raw)), None)
    log.launch(1, stream)
    graph = end(driver, stream)
    assert status(driver, stream) == NONE
    assert node_count(driver, graph) == 5
    driver.sync(stream)
    assert (log.numbers, host_calls) == ([], [])
    replayed = instantiate(driver, graph)
    driver("cuGraphDestroy", graph)
    for _ in range(3):
        driver("cuGraphLaunch", replayed, stream)
    driver.sync(stream)
    assert log.numbers == [1, 1, 1]
    assert host_calls == [b"\x0a\0\0\0\5\0\0\0"] * 3


@on_device()
def test_a_replay_reads_what_is_there_then(driver: Driver) -> None:
    stream, address = driver.stream(), driver.alloc(4)
    pageable = ctypes.create_string_buffer(b"then", 4)
    begin(driver, stream)
    driver("cuMemcpyHtoDAsync_v2", address, pageable, 4, stream)
    replayed = instantiate(driver, end(driver, stream))
    pageable.raw = b"now!"
    driver("cuGraphLaunch", replayed, stream)
    driver.sync(stream)
    assert driver.read(address, 4) == b"now!"


@on_device()
def test_a_capture_forks_and_joins_by_events(driver: Driver) -> None:
    one, other, log = driver.stream(), driver.stream(), Log(driver)
    fork, join = driver.event(), driver.event()
    begin(driver, one)
    log.launch(1, one)
    driver("cuEventRecord", fork, one)
    driver("cuStreamWaitEvent", other, fork, 0)
    assert status(driver, other) == ACTIVE
    log.launch(2, other)
    driver("cuEventRecord", join, other)
    log.launch(3, one)
    driver("cuStreamWaitEvent", one, join, 0)
    log.launch(4, one)
    assert driver.result("cuEventQuery", fork) == CAPTURE_UNSUPPORTED
    graph_status = status(driver, one)
    assert graph_status == INVALIDATED
    assert end_result(driver, one) == CAPTURE_INVALIDATED
    assert log.numbers == []


@on_device()
def test_a_forked_graph_keeps_the_order_of_its_parts(driver: Driver) -> None:
    one, other, log = driver.stream(), driver.stream(), Log(driver)
    fork, join = driver.event(), driver.event()
    begin(driver, one)
    log.launch(1, one)
    driver("cuEventRecord", fork, one)
    driver("cuStreamWaitEvent", other, fork, 0)
    log.launch(2, other)
    driver("cuEventRecord", join, other)
    log.launch(3, one)
    driver("cuStreamWaitEvent", one, join, 0)
    log.launch(4, one)
    graph = end(driver, one)
    assert status(driver, other) == NONE
    driver("cuGraphLaunch", instantiate(driver, graph), other)
    driver.sync(other)
    assert sorted(log.numbers) == [1, 2, 3, 4]
    assert (log.numbers[0], log.numbers[-1]) == (1, 4)
    assert driver.result("cuEventQuery", fork) == CAPTURED_EVENT
    driver("cuEventRecord", fork, one)
    driver("cuEventSynchronize", fork)


@on_device()
def test_waiting_in_a_capture_spoils_it(driver: Driver) -> None:
    stream, address = driver.stream(), driver.alloc(4)
    for name, args in (
        ("cuStreamSynchronize", (stream,)),
        ("cuStreamQuery", (stream,)),
        ("cuCtxSynchronize", ()),
        ("cuMemcpyHtoD_v2", (address, b"1234", 4)),
        ("cuMemAlloc_v2", (byref(c_uint64()), 4)),
        ("cuMemFree_v2", (address,)),
    ):
        begin(driver, stream)
        assert driver.result(name, *args) == CAPTURE_UNSUPPORTED, name
        assert status(driver, stream) == INVALIDATED
        assert driver.result("cuMemsetD8Async", address, 0, 4, stream) == CAPTURE_INVALIDATED
        assert end_result(driver, stream) == CAPTURE_INVALIDATED
        assert status(driver, stream) == NONE
    driver.write(address, b"1234")


@on_device()
def test_modes_say_which_threads_may_do_what_a_capture_cannot_see(driver: Driver) -> None:
    stream = driver.stream()

    def alloc() -> int:
        return driver.result("cuMemAlloc_v2", byref(c_uint64()), 4)

    def elsewhere() -> int:
        results: list[int] = []

        def call() -> None:
            driver("cuCtxSetCurrent", driver.context)
            results.append(alloc())

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return results[0]

    for mode, here, there in (
        (GLOBAL, CAPTURE_UNSUPPORTED, CAPTURE_UNSUPPORTED),
        (THREAD_LOCAL, CAPTURE_UNSUPPORTED, 0),
        (RELAXED, 0, 0),
    ):
        begin(driver, stream, mode)
        assert (alloc(), elsewhere()) == (here, there)
        end_result(driver, stream)
    # A thread may say that it knows what it does.
    begin(driver, stream)
    exchanged = c_int(RELAXED)
    driver("cuThreadExchangeStreamCaptureMode", byref(exchanged))
    assert exchanged.value == GLOBAL
    assert alloc() == 0
    driver("cuThreadExchangeStreamCaptureMode", byref(exchanged))
    assert exchanged.value == RELAXED
    end(driver, stream)
    # But a context must not be waited for while anything in it captures, as on an H100.
    for mode in (GLOBAL, THREAD_LOCAL, RELAXED):
        begin(driver, stream, mode)
        exchanged.value = RELAXED
        driver("cuThreadExchangeStreamCaptureMode", byref(exchanged))
        assert driver.result("cuCtxSynchronize") == CAPTURE_UNSUPPORTED
        driver("cuThreadExchangeStreamCaptureMode", byref(exchanged))
        assert end_result(driver, stream) == CAPTURE_INVALIDATED
    driver("cuCtxSynchronize")
    exchanged.value = 3
    assert driver.result("cuThreadExchangeStreamCaptureMode", byref(exchanged)) == INVALID_VALUE


@on_device()
def test_the_legacy_stream_must_not_meet_a_blocking_capture(driver: Driver) -> None:
    blocking, free, log = driver.stream(0), driver.stream(), Log(driver)
    assert driver.result("cuStreamBeginCapture_v2", 0, GLOBAL) == CAPTURE_UNSUPPORTED
    begin(driver, blocking, RELAXED)
    noop = driver.function("noop")
    assert driver.result("cuLaunchKernel", noop, 1, 1, 1, 1, 1, 1, 0, 0, None, None) == CAPTURE_IMPLICIT
    assert end_result(driver, blocking) == CAPTURE_INVALIDATED
    begin(driver, free, RELAXED)
    log.launch(1, free)
    log.launch(2)
    driver.sync(0)
    assert log.numbers == [2]
    end(driver, free)


@on_device()
def test_captures_end_as_they_began(driver: Driver) -> None:
    one, other = driver.stream(), driver.stream()
    fork, noop = driver.event(), driver.function("noop")
    assert end_result(driver, one) == ILLEGAL_STATE
    begin(driver, one)
    assert driver.result("cuStreamBeginCapture_v2", one, GLOBAL) == ILLEGAL_STATE
    results: list[int] = []

    def elsewhere() -> None:
        driver("cuCtxSetCurrent", driver.context)
        results.append(end_result(driver, one))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert results == [CAPTURE_WRONG_THREAD]
    driver("cuEventRecord", fork, one)
    driver("cuStreamWaitEvent", other, fork, 0)
    driver.launch(noop, stream=other)
    assert end_result(driver, one) == CAPTURE_UNJOINED
    begin(driver, one)
    driver("cuEventRecord", fork, one)
    driver("cuStreamWaitEvent", other, fork, 0)
    assert end_result(driver, other) == CAPTURE_UNMATCHED
    assert end_result(driver, one) == CAPTURE_INVALIDATED
    assert driver.result("cuStreamWaitEvent", other, fork, 0) == CAPTURED_EVENT


@on_device()
def test_captures_depend_on_nothing_outside(driver: Driver) -> None:
    one, other, event = driver.stream(), driver.stream(), driver.event()
    driver("cuEventRecord", event, other)
    begin(driver, one)
    assert driver.result("cuStreamWaitEvent", one, event, 0) == CAPTURE_ISOLATION
    assert end_result(driver, one) == CAPTURE_INVALIDATED
    begin(driver, one)
    begin(driver, other)
    driver("cuEventRecord", event, other)
    assert driver.result("cuStreamWaitEvent", one, event, 0) == CAPTURE_MERGE
    assert end_result(driver, one) == end_result(driver, other) == CAPTURE_INVALIDATED


@on_device()
def test_a_stream_that_ends_takes_its_capture_along(driver: Driver) -> None:
    stream = driver.stream()
    begin(driver, stream)
    driver.launch(driver.function("noop"), stream=stream)
    driver("cuStreamDestroy_v2", stream)
    driver.alloc(4)  # which a capture under way would forbid


@on_device()
def test_a_capture_tells_its_graph_and_goes_on_in_a_given_one(driver: Driver) -> None:
    stream, log = driver.stream(), Log(driver)
    graph = driver.out(c_void_p, "cuGraphCreate", 0)
    begin(driver, stream)
    log.launch(1, stream)
    state, number, told, deps, count = c_int(), c_uint64(), c_void_p(), c_void_p(), c_size_t()
    driver(
        "cuStreamGetCaptureInfo_v2",
        stream,
        byref(state),
        byref(number),
        byref(told),
        byref(deps),
        byref(count),
    )
    assert (state.value, count.value, node_count(driver, told.value or 0)) == (ACTIVE, 1, 1)
    end(driver, stream)
    driver("cuStreamBeginCaptureToGraph", stream, graph, None, None, 0, GLOBAL)
    log.launch(2, stream)
    assert end(driver, stream) == graph
    nodes = (c_void_p * 1)()
    driver("cuGraphGetNodes", graph, nodes, byref(c_size_t(1)))
    driver("cuStreamBeginCaptureToGraph", stream, graph, nodes, None, 1, GLOBAL)
    log.launch(3, stream)
    end(driver, stream)
    driver("cuGraphLaunch", instantiate(driver, graph), stream)
    driver.sync(stream)
    assert log.numbers == [2, 3]


def kernel_params(function: int, params: Any) -> KernelNodeParams:
    return KernelNodeParams(
        function, 1, 1, 1, 1, 1, 1, 0, ctypes.cast(params, ctypes.POINTER(c_void_p)), None, None, None
    )


@on_device()
def test_a_graph_is_built_by_hand(driver: Driver) -> None:
    graph, stream = driver.out(c_void_p, "cuGraphCreate", 0), driver.stream()
    address, host = driver.alloc(4096), ctypes.create_string_buffer(8)
    seen: list[bytes] = []

    def add(name: str, deps: list[int], *args: Any) -> int:
        array = (c_void_p * max(len(deps), 1))(*deps)
        return driver.out(c_void_p, name, graph, array, len(deps), *args)

    memset = MemsetNodeParams(dst=address, value=3, elementSize=4, width=2, height=1)
    first = add("cuGraphAddMemsetNode", [], byref(memset), driver.context)
    params = pointers(*map(c_uint64, (address, address, address, 1)))
    second = add("cuGraphAddKernelNode_v2", [first], byref(kernel_params(driver.function("add_u32"), params)))
    copy = Memcpy3D(
        srcMemoryType=DEVICE,
        srcDevice=address,
        dstMemoryType=HOST,
        dstHost=ctypes.addressof(host),
        WidthInBytes=8,
        Height=1,
        Depth=1,
    )
    third = add("cuGraphAddMemcpyNode", [second], byref(copy), driver.context)
    node = HostNodeParams(driver.host_function(lambda: seen.append(host.raw)), None)
    fourth = add("cuGraphAddHostNode", [third], byref(node))
    last = add("cuGraphAddEmptyNode", [fourth])
    kinds = [
        driver.out_after(c_int, "cuGraphNodeGetType", one) for one in (first, second, third, fourth, last)
    ]
    assert kinds == [2, 0, 1, 3, 5]
    roots = c_size_t()
    driver("cuGraphGetRootNodes", graph, None, byref(roots))
    assert roots.value == 1
    driver("cuGraphLaunch", instantiate(driver, graph), stream)
    driver.sync(stream)
    assert seen == [b"\6\0\0\0\3\0\0\0"]
    stranger = driver.out(c_void_p, "cuGraphCreate", 0)
    wrong = (c_void_p * 1)(first)
    assert driver.result("cuGraphAddEmptyNode", byref(c_void_p()), stranger, wrong, 1) == INVALID_VALUE


@on_device()
def test_dependencies_that_came_later_are_kept_and_circles_refused(driver: Driver) -> None:
    graph, stream, order = driver.out(c_void_p, "cuGraphCreate", 0), driver.stream(), []

    def host_node(number: int) -> int:
        node = HostNodeParams(driver.host_function(lambda: order.append(number)), None)
        return driver.out(c_void_p, "cuGraphAddHostNode", graph, None, 0, byref(node))

    nodes = [host_node(number) for number in range(4)]

    def depend(before: int, after: int) -> int:
        return driver.result(
            "cuGraphAddDependencies", graph, (c_void_p * 1)(nodes[before]), (c_void_p * 1)(nodes[after]), 1
        )

    assert depend(3, 2) == depend(2, 1) == depend(1, 0) == 0
    assert depend(1, 0) == depend(1, 1) == INVALID_VALUE
    driver("cuGraphLaunch", instantiate(driver, graph), stream)
    driver.sync(stream)
    assert order == [3, 2, 1, 0]
    assert depend(0, 3) == 0
    assert driver.result("cuGraphInstantiateWithFlags", byref(c_void_p()), graph, 0) == INVALID_VALUE


@on_device()
def test_kernel_nodes_change_their_parameters(driver: Driver) -> None:
    graph, stream, address = driver.out(c_void_p, "cuGraphCreate", 0), driver.stream(), driver.alloc(MIB)
    fill = driver.function("fill_u32")

    def params(value: int) -> KernelNodeParams:
        return kernel_params(fill, pointers(c_uint64(address), c_uint64(1), c_uint32(value)))

    def run(replayed: int) -> int:
        driver("cuGraphLaunch", replayed, stream)
        driver.sync(stream)
        return int.from_bytes(driver.read(address, 4), "little")

    node = driver.out(c_void_p, "cuGraphAddKernelNode_v2", graph, None, 0, byref(params(1)))
    replayed = instantiate(driver, graph)
    driver("cuGraphKernelNodeSetParams_v2", node, byref(params(2)))
    assert run(replayed) == 1  # made before
    assert run(instantiate(driver, graph)) == 2
    driver("cuGraphExecKernelNodeSetParams_v2", replayed, node, byref(params(3)))
    assert run(replayed) == 3
    told = KernelNodeParams()
    driver("cuGraphKernelNodeGetParams_v2", node, byref(told))
    assert (told.func, told.gx, told.bz) == (fill, 1, 1)
    assert c_uint32.from_address(told.kernelParams[2]).value == 2
    assert (
        driver.result("cuGraphExecKernelNodeSetParams_v2", replayed, graph, byref(params(3))) == INVALID_VALUE
    )


@on_device()
def test_a_launched_graph_may_be_destroyed_before_it_has_run(driver: Driver) -> None:
    stream, gate, log = driver.stream(), Gate(driver), Log(driver)
    begin(driver, stream)
    log.launch(1, stream)
    graph = end(driver, stream)
    replayed = instantiate(driver, graph)
    driver.launch(gate.function, stream=stream)
    driver("cuGraphLaunch", replayed, stream)
    driver("cuGraphExecDestroy", replayed)
    driver("cuGraphDestroy", graph)
    gate.open()
    driver.sync(stream)
    assert log.numbers == [1]


@on_device()
def test_a_graph_must_not_be_launched_in_a_capture(driver: Driver) -> None:
    stream, log = driver.stream(), Log(driver)
    begin(driver, stream)
    log.launch(1, stream)
    inner = instantiate(driver, end(driver, stream))
    begin(driver, stream)
    assert driver.result("cuGraphLaunch", inner, stream) == CAPTURE_UNSUPPORTED
    assert end_result(driver, stream) == CAPTURE_INVALIDATED
    assert log.numbers == []


@on_device()
def test_a_free_that_a_capture_refused_was_not_made(driver: Driver) -> None:
    blocking, address = driver.stream(0), driver.alloc(MIB)
    begin(driver, blocking, RELAXED)
    assert driver.result("cuMemFreeAsync", address, 0) == CAPTURE_IMPLICIT
    end_result(driver, blocking)
    driver("cuMemFreeAsync", address, 0)
    driver.sync()
    assert driver.free_bytes() == 64 * MIB


def nodes_of(driver: Driver, graph: int) -> list[int]:
    nodes = (c_void_p * node_count(driver, graph))()
    driver("cuGraphGetNodes", graph, nodes, byref(c_size_t(len(nodes))))
    return [int(node or 0) for node in nodes]


def create(driver: Driver) -> int:
    return driver.out(c_void_p, "cuGraphCreate", 0)


def word(driver: Driver, address: int) -> int:
    return int.from_bytes(driver.read(address, 4), "little")


def fill_params(driver: Driver, address: int, value: int) -> KernelNodeParams:
    params = pointers(c_uint64(address), c_uint64(1), c_uint32(value))
    return kernel_params(driver.function("fill_u32"), params)


@on_device()
def test_captured_nodes_tell_what_they_do_and_in_which_order(driver: Driver) -> None:
    stream, address, host = driver.stream(), driver.alloc(MIB), driver.pinned(64)
    called = driver.host_function(lambda: None)
    begin(driver, stream)
    driver("cuMemcpyHtoDAsync_v2", address, host, 4, stream)
    driver("cuMemsetD2D32Async", address, 64, 9, 4, 3, stream)
    driver("cuLaunchHostFunc", stream, called, 7)
    driver("cuStreamWriteValue32_v2", stream, address, 5, 0)
    launch = kernel_params(driver.function("fill_u32"), None)
    size = c_size_t(24)
    packed = ctypes.create_string_buffer(
        address.to_bytes(8, "little") + (2).to_bytes(8, "little") + b"\3" + bytes(7)
    )
    extra = (c_void_p * 5)(1, ctypes.addressof(packed), 2, ctypes.addressof(size), 0)
    driver("cuLaunchKernel", launch.func, 1, 1, 1, 1, 1, 1, 0, stream, None, extra)
    graph = end(driver, stream)
    copy, fill, host_node, value, kernel = nodes_of(driver, graph)
    copied, filled, hosted = Memcpy3D(), MemsetNodeParams(), HostNodeParams()
    driver("cuGraphMemcpyNodeGetParams", copy, byref(copied))
    assert (copied.srcHost, copied.dstDevice, copied.WidthInBytes, copied.Height, copied.srcPitch) == (
        ctypes.addressof(host), address, 4, 1, 0,
    )  # fmt: skip
    driver("cuGraphMemsetNodeGetParams", fill, byref(filled))
    assert (filled.dst, filled.pitch, filled.value, filled.width, filled.height) == (address, 64, 9, 4, 3)
    driver("cuGraphHostNodeGetParams", host_node, byref(hosted))
    assert (ctypes.cast(hosted.fn, c_void_p).value, hosted.userData) == (
        ctypes.cast(called, c_void_p).value,
        7,
    )
    batch = (c_uint64 * 4)()
    driver("cuGraphBatchMemOpNodeGetParams", value, batch)
    assert batch[1] & 0xFFFFFFFF == 1
    assert ctypes.string_at(batch[2], 16)[8:] == address.to_bytes(8, "little")
    for version in ("", "_v2"):
        told = KernelNodeParams()
        driver(f"cuGraphKernelNodeGetParams{version}", kernel, byref(told))
        assert c_uint64.from_address(told.kernelParams[1]).value == 2
    edges = c_size_t()
    driver("cuGraphGetEdges_v2", graph, None, None, None, byref(edges))
    before, after = (c_void_p * 4)(), (c_void_p * 4)()
    driver("cuGraphGetEdges", graph, before, after, byref(edges))
    assert list(zip(before, after, strict=True)) == [
        (copy, fill), (fill, host_node), (host_node, value), (value, kernel),
    ]  # fmt: skip


@on_device()
def test_launch_attributes_are_told_and_stay(driver: Driver) -> None:
    stream, address = driver.stream(), driver.alloc(MIB)
    attribute = ctypes.create_string_buffer((4).to_bytes(8, "little") + b"\2\0\0\0\1\0\0\0\1\0\0\0", 72)
    config = LaunchConfig(2, 1, 1, 1, 1, 1, 0, stream, ctypes.addressof(attribute), 1)
    params = pointers(c_uint64(address), c_uint64(1), c_uint32(1))
    begin(driver, stream)
    driver("cuLaunchKernelEx", byref(config), driver.function("fill_u32"), params, None)
    driver("cuLaunchCooperativeKernel", driver.function("fill_u32"), 1, 1, 1, 1, 1, 1, 0, stream, params)
    spread, together = nodes_of(driver, end(driver, stream))
    driver("cuGraphKernelNodeSetParams_v2", spread, byref(fill_params(driver, address, 2)))

    def attribute_of(node: int, which: int) -> list[int]:
        value = (c_uint32 * 16)()
        driver("cuGraphKernelNodeGetAttribute", node, which, value)
        return list(value[:3])

    assert (attribute_of(spread, 4), attribute_of(spread, 2)) == ([2, 1, 1], [0, 0, 0])
    assert (attribute_of(together, 4), attribute_of(together, 2)) == ([0, 0, 0], [1, 0, 0])
    assert driver.result("cuGraphKernelNodeGetAttribute", spread, 7, (c_uint32 * 16)()) == INVALID_VALUE


@on_device()
def test_a_child_graph_is_a_copy_whose_nodes_the_exec_knows(driver: Driver) -> None:
    inner, outer, stream, address = create(driver), create(driver), driver.stream(), driver.alloc(MIB)
    made = driver.out(
        c_void_p, "cuGraphAddKernelNode_v2", inner, None, 0, byref(fill_params(driver, address, 1))
    )
    child = driver.out(c_void_p, "cuGraphAddChildGraphNode", outer, None, 0, inner)
    graph = driver.out_after(c_void_p, "cuGraphChildGraphNodeGetGraph", child)
    replayed = instantiate(driver, outer)
    driver("cuGraphKernelNodeSetParams_v2", made, byref(fill_params(driver, address, 2)))

    def run() -> int:
        driver("cuGraphLaunch", replayed, stream)
        driver.sync(stream)
        return word(driver, address)

    assert run() == 1
    driver("cuGraphExecChildGraphNodeSetParams", replayed, child, inner)
    assert run() == 2
    (node,) = nodes_of(driver, graph)
    driver("cuGraphExecKernelNodeSetParams_v2", replayed, node, byref(fill_params(driver, address, 3)))
    assert run() == 3
    assert (
        driver.result(
            "cuGraphExecKernelNodeSetParams_v2", replayed, made, byref(fill_params(driver, address, 4))
        )
        == INVALID_VALUE
    )


@on_device()
def test_an_exec_is_updated_from_a_graph_like_its_own(driver: Driver) -> None:
    stream, address, numbers = driver.stream(), driver.alloc(MIB), [0, 1]

    def graph_of(*values: int) -> int:
        graph = create(driver)
        for i, value in enumerate(values):
            params = fill_params(driver, address + 4 * i, value)
            driver.out(c_void_p, "cuGraphAddKernelNode_v2", graph, None, 0, byref(params))
        return graph

    first = graph_of(1, 2)
    replayed, info = instantiate(driver, first), (c_uint64 * 3)()
    driver("cuGraphExecUpdate_v2", replayed, graph_of(3, 4), info)
    # Known by the nodes of the graph it was made from, also then.
    params = fill_params(driver, address + 4, 5)
    driver("cuGraphExecKernelNodeSetParams_v2", replayed, nodes_of(driver, first)[1], byref(params))
    driver("cuGraphLaunch", replayed, stream)
    driver.sync(stream)
    assert [word(driver, address + 4 * i) for i in numbers] == [3, 5]
    update = c_int()
    assert driver.result("cuGraphExecUpdate", replayed, graph_of(1), byref(c_void_p()), byref(update)) == 910
    assert update.value == 2
    driver("cuGraphNodeSetEnabled", replayed, nodes_of(driver, first)[1], 0)
    driver("cuMemsetD32Async", address, 0, 2, stream)
    driver("cuGraphLaunch", replayed, stream)
    driver.sync(stream)
    assert [word(driver, address + 4 * i) for i in numbers] == [3, 0]


@on_device()
def test_event_nodes_record_and_wait_when_they_are_launched(driver: Driver) -> None:
    graph, stream, other = create(driver), driver.stream(), driver.stream()
    gate, log, before, behind = Gate(driver), Log(driver), driver.event(), driver.event()
    driver.launch(gate.function, stream=other)
    log.launch(1, other)
    driver("cuEventRecord", before, other)
    waits = driver.out(c_void_p, "cuGraphAddEventWaitNode", graph, None, 0, before)
    begin_at = (c_void_p * 1)(waits)
    driver("cuStreamBeginCaptureToGraph", stream, graph, begin_at, None, 1, GLOBAL)
    log.launch(2, stream)
    end(driver, stream)
    last = (c_void_p * 1)(nodes_of(driver, graph)[-1])
    records = driver.out(c_void_p, "cuGraphAddEventRecordNode", graph, last, 1, behind)
    assert driver.out_after(c_void_p, "cuGraphEventWaitNodeGetEvent", waits) == before
    assert driver.out_after(c_void_p, "cuGraphEventRecordNodeGetEvent", records) == behind
    driver("cuGraphLaunch", instantiate(driver, graph), stream)
    assert driver.result("cuEventQuery", behind) == 600
    gate.open()
    driver("cuEventSynchronize", behind)
    assert log.numbers == [1, 2]


@on_device()
def test_launches_of_one_exec_never_overlap(driver: Driver) -> None:
    one, other, gate, log = driver.stream(), driver.stream(), Gate(driver), Log(driver)
    begin(driver, one)
    driver.launch(gate.function, stream=one)
    log.launch(1, one)
    replayed = instantiate(driver, end(driver, one))
    driver("cuGraphLaunch", replayed, one)
    driver("cuGraphLaunch", replayed, other)
    log.launch(2, other)
    gate.open()
    driver.sync(other)
    assert log.numbers == [1, 1, 2]


@on_device()
def test_a_conditional_node_runs_the_body_that_its_default_says(driver: Driver) -> None:
    stream, address = driver.stream(), driver.alloc(MIB)
    for value in (0, 1):
        graph = create(driver)
        handle = driver.out(c_uint64, "cuGraphConditionalHandleCreate", graph, driver.context, value, 1)
        node, params = c_void_p(), (c_uint64 * 32)(13, 0, handle, 2 << 32, 0, driver.context)
        driver("cuGraphAddNode", byref(node), graph, None, 0, params)
        bodies = (c_void_p * 2).from_address(params[4])
        for i, body in enumerate(bodies):
            fill = fill_params(driver, address, 10 + i)
            driver.out(c_void_p, "cuGraphAddKernelNode_v2", body or 0, None, 0, byref(fill))
        driver("cuGraphLaunch", instantiate(driver, graph), stream)
        driver.sync(stream)
        assert word(driver, address) == (10 if value else 11)
        driver("cuGraphDestroyNode", node.value or 0)
        assert node_count(driver, graph) == 0
