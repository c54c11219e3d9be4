# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in tiers smaller than they need: what they read is what they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .pieces import BEGIN, SMALL, VIEW
from .tiers import PROGRAMS, Runner

OPS = PROGRAMS / "random_ops.py"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("late", ["0", "1"])
def test_random_operations_over_all_tiers(runner: Runner, seed: int, late: str) -> None:
    """Eight allocations of up to 16 MiB: more than VRAM and RAM together."""
    result = runner.tiered(SMALL, OPS, seed, 150, 8, 16, SOFTCUDA_LATE=late)
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert result.counters["evictions"] > 0
    assert result.counters["spill_bytes"] > 0
    assert result.counters["fetch_bytes"] > 0


def test_random_operations_without_nvme(runner: Runner) -> None:
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 128MiB", OPS, 7, 200, 8, 16)
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert result.counters["evictions"] > 0
    assert result.counters["spill_bytes"] == 0


def test_nothing_is_looked_at_while_all_fits(runner: Runner) -> None:
    result = runner.tiered("--chunk 2MiB --vram 200MiB --ram 16MiB", OPS, 3, 100, 8, 16, device="256MiB")
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert result.counters["launches"] == 0
    assert result.counters["evictions"] == 0


NAMED = (
    """
import os, sys
if len(sys.argv) == 2:
    os.execv(sys.executable, [b"caf\\xe9" + b"x" * 60, "-c", sys.argv[1], sys.argv[1], "again"])
"""
    + BEGIN
    + """
free, total = c_size_t(), c_size_t()
assert cuda.cuMemGetInfo_v2(byref(free), byref(total)) == 0
print(total.value >> 20)
"""
)


def test_a_program_whose_name_is_no_text_has_the_tiers_too(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", NAMED, NAMED)
    assert result.status == 0, result.err
    assert int(result.out) > 200, result.err
    (session,) = result.report["sessions"]
    assert session["name"] == "caf?" + "x" * 46 + ":0"


PROC = (
    BEGIN
    + """
for name, version, flags, full in [
    ("cuMemAlloc", 13000, 0, "cuMemAlloc_v2"),
    ("cuLaunchKernel", 13000, 0, "cuLaunchKernel"),
    ("cuLaunchKernel", 13000, 2, "cuLaunchKernel_ptsz"),
    ("cuMemcpyHtoDAsync", 13000, 2, "cuMemcpyHtoDAsync_v2_ptsz"),
    ("cuGetProcAddress", 13000, 0, "cuGetProcAddress_v2"),
]:
    found = c_void_p()
    assert cuda.cuGetProcAddress_v2(name.encode(), byref(found), version, c_uint64(flags), None) == 0
    assert found.value == ctypes.cast(getattr(cuda, full), c_void_p).value, full
print("all ours")
"""
)


def test_every_way_to_a_hooked_function_leads_to_the_shim(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", PROC)
    assert (result.status, result.out) == (0, "all ours\n"), result.err


TWO = (
    BEGIN
    + """
def use(device):
    assert cuda.cuDevicePrimaryCtxRetain(byref(context), device) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    addresses = [c_uint64() for _ in range(8)]
    for address in addresses:
        assert cuda.cuMemAlloc_v2(byref(address), c_size_t(8 << 20)) == 0
    for value in range(3):
        for address in addresses:
            assert cuda.cuMemsetD32Async(address, value, c_size_t(2 << 20), None) == 0
    assert cuda.cuCtxSynchronize() == 0

for device in (0, 1, 0, 1):
    use(device)
assert cuda.cuDevicePrimaryCtxReset_v2(0) == 0
use(0)
print("right")
"""
)


def test_devices_page_side_by_side_and_anew_after_a_reset(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", TWO, SOFTCUDA_DEVICES="2")
    assert (result.status, result.out) == (0, "right\n"), result.err


IN_CAPTURE = (
    BEGIN
    + """
module, spin, fill = c_void_p(), c_void_p(), c_void_p()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
assert cuda.cuModuleGetFunction(byref(spin), module, b"spin_ns") == 0
assert cuda.cuModuleGetFunction(byref(fill), module, b"fill_u32") == 0

def launch(function, stream, *params):
    pointers = (c_void_p * len(params))(*(ctypes.addressof(p) for p in params))
    assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, pointers, None) == 0

address, captured, other, graph = c_uint64(), c_void_p(), c_void_p(), c_void_p()
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(8 << 20)) == 0
assert cuda.cuStreamCreate(byref(captured), 1) == 0
assert cuda.cuStreamCreate(byref(other), 1) == 0
launch(spin, other, c_uint64(300_000_000))
launch(fill, other, address, c_uint64(4), ctypes.c_uint(3))
assert cuda.cuStreamBeginCapture_v2(captured, 0) == 0
assert cuda.cuMemFree_v2(address) == 900  # CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
cuda.cuStreamEndCapture(captured, byref(graph))
got = (ctypes.c_uint * 4)()
assert cuda.cuCtxSynchronize() == 0
assert cuda.cuMemcpyDtoH_v2(got, address, c_size_t(16)) == 0
assert cuda.cuMemFree_v2(address) == 0
print(list(got))
"""
)


def test_memory_that_a_capture_forbids_to_free_stays(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", IN_CAPTURE)
    assert (result.status, result.out) == (0, "[3, 3, 3, 3]\n"), result.err


SIGNAL = (
    BEGIN
    + """
import os, signal
address = c_uint64()
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(8 << 20)) == 0
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.kill(os.getpid(), signal.SIGUSR1)
print(signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1)
"""
)


def test_signals_are_the_program_s(runner: Runner) -> None:
    """A signal that all threads of the program block must not find one of the shim's that does not."""
    result = runner.tiered(SMALL, "-c", SIGNAL)
    assert (result.status, result.out) == (0, "True\n"), result.err


ELSEWHERE = (
    BEGIN
    + """
module, spin, stream, other = c_void_p(), c_void_p(), c_void_p(), c_void_p()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
assert cuda.cuModuleGetFunction(byref(spin), module, b"spin_ns") == 0
assert cuda.cuStreamCreate(byref(stream), 1) == 0
assert cuda.cuDevicePrimaryCtxRetain(byref(other), 1) == 0
addresses = [c_uint64() for _ in range(9)]
for address in addresses:
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(8 << 20)) == 0
for address in addresses[1:]:
    assert cuda.cuMemsetD32_v2(address, 5, c_size_t(2 << 20)) == 0
time = c_uint64(1_000_000_000)
pointers = (c_void_p * 1)(ctypes.addressof(time))
assert cuda.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, pointers, None) == 0
assert cuda.cuCtxSetCurrent(other) == 0
assert cuda.cuMemsetD32Async(addresses[0], 9, c_size_t(4), stream) == 0
assert cuda.cuCtxSetCurrent(context) == 0
for value in (6, 7):
    for address in addresses[1:]:
        assert cuda.cuMemsetD32_v2(address, value, c_size_t(2 << 20)) == 0
assert cuda.cuStreamSynchronize(stream) == 0
got = (ctypes.c_uint * 4)()
assert cuda.cuMemcpyDtoH_v2(got, addresses[0], c_size_t(16)) == 0
print(list(got))
"""
)


def test_work_for_a_stream_of_another_context_keeps_its_chunks(runner: Runner) -> None:
    result = runner.tiered(SMALL, "-c", ELSEWHERE, SOFTCUDA_DEVICES="2")
    assert (result.status, result.out) == (0, "[9, 9, 9, 9]\n"), result.err


def test_the_shim_stays_once_it_is_loaded(shim: Path, softcuda: Path) -> None:
    """Its threads run in it."""
    program = "import _ctypes, sys; _ctypes.dlclose(_ctypes.dlopen(sys.argv[1], 2))"
    program += "; print('libgreenboost_cuda' in open('/proc/self/maps').read())"
    done = subprocess.run(
        [sys.executable, "-c", program, shim],
        env={**os.environ, "GREENBOOST_CUDA_DRIVER": str(softcuda)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


CAPTURING = (
    VIEW
    + """
import sys
assert cuda.cuMemAlloc_v2(byref(a), c_size_t(16 * MIB)) == 0
stream, graph = c_void_p(), c_void_p()
streams = [c_void_p() for _ in range(9)]
for s in [stream, *streams]:
    assert cuda.cuStreamCreate(byref(s), 1) == 0
spin = c_void_p()
assert cuda.cuModuleGetFunction(byref(spin), module, b"spin_ns") == 0

def busy(stream):
    time = c_uint64(300_000_000)
    pointers = (c_void_p * 1)(ctypes.addressof(time))
    assert cuda.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, pointers, None) == 0

# As a program that copies and allocates while it captures must.
assert cuda.cuThreadExchangeStreamCaptureMode(byref(ctypes.c_int(2))) == 0
if sys.argv[1] == "unseen":
    # Paging is to begin, and has not waited for anything yet, when the capture does.
    assert cuda.cuStreamBeginCapture_v2(stream, 0) == 0
    evict()
else:
    evict()
    assert cuda.cuStreamBeginCapture_v2(stream, 0) == 0
    for i, s in enumerate(streams):
        busy(s)
        assert cuda.cuMemsetD32Async(c_uint64(a.value + 4 * i), i, c_size_t(1), s) == 0
    evict()
assert cuda.cuStreamEndCapture(stream, byref(graph)) == 0
evict()
for s in streams:  # a copy in the null stream does not wait for them
    assert cuda.cuStreamSynchronize(s) == 0
print([read(a.value + 4 * i) for i in range(9)] if sys.argv[1] == "crowded" else "right")
"""
)


@pytest.mark.parametrize("what", ["unseen", "crowded"])
def test_chunks_leave_during_a_capture_and_leave_it_alone(runner: Runner, what: str) -> None:
    """Waiting for the context would spoil it, and end paging."""
    result = runner.tiered(SMALL, "-c", CAPTURING, what)
    out = "right\n" if what == "unseen" else "[0, 1, 2, 3, 4, 5, 6, 7, 8]\n"
    assert (result.status, result.out) == (0, out), result.err
