# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs whose daemon dies under them, at any moment, and comes back or does not."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from . import sanitizer
from .mortal import Daemon, Nursery
from .tiers import ROOT, Runner

MIB = 1 << 20
PATIENCE = 1200 if sanitizer.SANITIZE else 120  # seconds

IMMORTAL = 0


class Daemons:
    """One daemon after the other, in one folder."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.folder = folder
        self.spill = 97  # MiB
        self.encrypt = False
        self._nursery = nursery
        self._now: Daemon | None = None

    def start(self, life: int = IMMORTAL, *, ready: bool = True) -> Daemon:
        """One that dies after `life` steps; `ready`: which serves."""
        self.end(signal.SIGKILL)
        self._now = self._nursery.fork(str(self.folder), self.spill, self.encrypt, life)
        if ready:
            assert self._now.ready()
        return self._now

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, if there is one; its status."""
        now, self._now = self._now, None
        return 0 if now is None else now.end(number)

    def end_and_leave_nothing(self) -> None:
        """End it in order, when it is the last."""
        self.end()
        assert os.listdir(self.folder) == []


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    it = Nursery()
    yield it
    it.close()


@pytest.fixture
def daemons(tmp_path: Path, nursery: Nursery) -> Iterator[Daemons]:
    folder = tmp_path / "daemon"
    folder.mkdir()
    it = Daemons(folder, nursery)
    yield it
    it.end(signal.SIGKILL)


@contextmanager
def program(
    runner: Runner, daemons: Daemons, *argv: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A program under the shim, with 8 chunks of VRAM."""
    with subprocess.Popen(
        runner.command(*argv),
        env=runner.served(daemons.folder / "socket", 16 * MIB) | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
    assert (found := sanitizer.findings(runner.folder)) == "", found


def outlives(process: subprocess.Popen[str], daemon: Daemon) -> bool:
    """Waits until one of them has ended; whether it is the daemon alone."""
    fd = os.pidfd_open(process.pid)
    try:
        ended, _, _ = select.select([fd, daemon.pidfd], [], [], PATIENCE)
        assert ended, "nothing ends"
        return fd not in ended
    finally:
        os.close(fd)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("ops", ["random_ops", "vmm_ops alone", "vmm_ops beside", "excess_ops 9"])
def test_results_are_right_whenever_the_daemon_dies(
    runner: Runner, daemons: Daemons, ops: str, seed: int
) -> None:
    lives = random.Random(seed)
    arguments = ["-m", *f"tests.shim.programs.{ops}".split(), str(seed), "80", "10", "12"]
    daemon = daemons.start(100 + lives.randrange(100))
    deaths = 0
    with program(runner, daemons, *arguments, PYTHONPATH=str(ROOT)) as process:
        while outlives(process, daemon):
            deaths += 1
            # The first things that it does are to be interrupted as well, but it has to get on.
            daemon = daemons.start(
                lives.choice([lives.randrange(1, 40), lives.randrange(200, 1200)]), ready=False
            )
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert deaths >= 3
    daemons.start()  # the last one might die while it ends
    daemons.end_and_leave_nothing()


BEGIN = """
import ctypes, os, sys
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p
import numpy as np
MIB = 1 << 20
cuda = ctypes.CDLL("libcuda.so.1")
context, module = c_void_p(), c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0

def fill(address, value):
    data = np.full(512 << 10, value, dtype=np.uint32)
    data[-1] += 1  # so that T3 does not keep it as a word
    assert cuda.cuMemcpyHtoD_v2(address, c_void_p(data.ctypes.data), c_size_t(data.nbytes)) == 0

def read(address):
    got = np.zeros(512 << 10, dtype=np.uint32)
    assert cuda.cuMemcpyDtoH_v2(c_void_p(got.ctypes.data), address, c_size_t(got.nbytes)) == 0
    return got

def allocated(count):
    "So many chunks, the i-th filled with 1000 * i."
    held = [c_uint64() for _ in range(count)]
    for i, address in enumerate(held):
        assert cuda.cuMemAlloc_v2(byref(address), c_size_t(2 * MIB)) == 0
        fill(address, 1000 * i)
    return held

def pause(word):
    print(word, flush=True)
    sys.stdin.readline()

def right(address, value):
    got = read(address)
    return (got[:-1] == value).all() and got[-1] == value + 1

def launch(name, *values):
    function = c_void_p()
    assert cuda.cuModuleGetFunction(byref(function), module, name) == 0
    params = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    return cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, params, None)

def files():
    "The open descriptors, and what each is."
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # the folder's own
    return found

def fill_up(held):
    while True:
        address = c_uint64()
        refused = cuda.cuMemAlloc_v2(byref(address), c_size_t(2 * MIB))
        if refused:
            return refused
        held.append(address)
        fill(address, 1000 * len(held))
"""

EVERY_TIER_FULL = (
    BEGIN
    + """
def name_objects(address, words):
    "The first 10 MiB are one object, as the shim now knows: launches are looked at."
    for at, size in ((0, 10), (10, 2)):
        begin = c_uint64(address.value + at * MIB)
        assert cuda.cuMemsetD32_v2(begin, c_uint(words), c_size_t(size * MIB // 4)) == 0
        assert launch(b"fill_u32", begin, c_uint64(size * MIB // 4), c_uint(words)) == 0

one, other, third, held = c_uint64(), c_uint64(), c_uint64(), []
for address in (one, other, third):
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(12 * MIB)) == 0
assert fill_up(held) == 2  # CUDA_ERROR_OUT_OF_MEMORY
name_objects(one, 1)
name_objects(other, 2)
name_objects(third, 5)
count = c_uint64(10 * MIB // 4)
assert launch(b"add_u32", one, other, third, count) == 2  # 15 chunks, VRAM has 8, RAM 6
assert fill_up(held) == 2
for i, address in enumerate(held):
    assert right(address, 1000 * (i + 1)), i
    assert launch(b"add_u32", address, address, other, c_uint64(512 << 10)) == 0
for i, address in enumerate(held):
    assert right(address, 1000 * (i + 1) + 2), i
assert (read(one) == 1).all() and (read(other) == 2).all() and (read(third) == 5).all()
assert launch(b"add_u32", one, one, other, count) == 0  # 10 chunks: two are used in RAM
assert (read(one)[: count.value] == 3).all()
assert cuda.cuMemFree_v2(one) == 0
assert fill_up(held) == 2
print(len(held))
"""
)


def test_every_tier_is_full(runner: Runner, daemons: Daemons) -> None:
    daemons.start()
    with program(runner, daemons, "-c", EVERY_TIER_FULL) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    # 8 chunks of VRAM, 6 of RAM less 2 in which chunks change places, 48 of NVMe; 12 are others'.
    assert int(out) == 8 + 4 + 48 - 12
    assert daemons.end() == 0
    assert os.listdir(daemons.folder) == []


WAITS = (
    BEGIN
    + """
held = allocated(40)
pause("filled")
# The last is in VRAM: what needs nothing of the daemon goes on.
assert launch(b"fill_u32", held[-1], c_uint64(1), c_uint(1000 * 39)) == 0
assert right(held[-1], 1000 * 39)
print("goes on", flush=True)
data = np.zeros(512 << 10, dtype=np.uint32)
for i, address in enumerate(held):
    result = cuda.cuMemcpyDtoH_v2(c_void_p(data.ctypes.data), address, c_size_t(data.nbytes))
    assert result or data[0] == 1000 * i, i
    if result:
        sys.exit(f"error {result}")
print("right")
"""
)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_launches_go_on_and_the_rest_waits(runner: Runner, daemons: Daemons, number: signal.Signals) -> None:
    daemons.start()
    with program(runner, daemons, "-c", WAITS) as process:
        assert said(process) == "filled"
        daemons.end(number)
        say(process)
        assert said(process) == "goes on"
        daemons.start()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "right\n"), err
    assert "the daemon is gone; what needs it waits up to 120 s for another" in err
    assert "the daemon is back; this program goes on" in err
    daemons.end_and_leave_nothing()


GIVES_BACK = (
    BEGIN
    + """
held = allocated(120)
pause("filled")
# First what is in VRAM, so that there is room.
for address in held[112:]:
    assert cuda.cuMemFree_v2(address) == 0
for i, address in enumerate(held[:96]):
    assert cuda.cuMemsetD32_v2(address, c_uint(i), c_size_t(512 << 10)) == 0
    assert (read(address) == i).all()
    assert cuda.cuMemFree_v2(address) == 0
print("goes on", flush=True)
assert all(right(held[i], 1000 * i) for i in range(96, 112))
print("right")
"""
)


def test_what_is_overwritten_or_freed_waits_for_nobody(runner: Runner, daemons: Daemons) -> None:
    """More often than requests can wait for a daemon."""
    daemons.spill = 257
    daemons.start()
    with program(runner, daemons, "-c", GIVES_BACK) as process:
        assert said(process) == "filled"
        daemons.end(signal.SIGKILL)
        noticed(process)
        say(process)
        assert said(process) == "goes on"
        daemons.start()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "right\n"), err
    daemons.end_and_leave_nothing()


@pytest.mark.parametrize(
    ("patience", "message"),
    [("1", "no daemon came back within 1 s"), ("0", "GREENBOOST_REATTACH says not to wait")],
)
def test_a_daemon_that_does_not_come_back_is_an_error(
    runner: Runner, daemons: Daemons, patience: str, message: str
) -> None:
    daemons.start()
    with program(runner, daemons, "-c", WAITS, GREENBOOST_REATTACH=patience) as process:
        assert said(process) == "filled"
        daemons.end(signal.SIGKILL)
        say(process)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "error " in err
    assert message in err
    # Its process is gone, so nobody is waited for.
    daemons.start()
    daemons.end_and_leave_nothing()


def test_a_program_of_a_daemon_that_knows_nothing_of_it_is_told(runner: Runner, daemons: Daemons) -> None:
    daemons.start()
    with program(runner, daemons, "-c", WAITS) as process:
        assert said(process) == "filled"
        daemons.end(signal.SIGKILL)
        (daemons.folder / "socket.ledger").unlink()
        (daemons.folder / "socket.ledger-wal").unlink()
        daemons.start()
        say(process)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "the new daemon does not go on with this program" in err
    daemons.end_and_leave_nothing()


LOSES = (
    BEGIN
    + """
held = allocated(40)
for i, address in enumerate(held):
    assert right(address, 1000 * i)  # so that what is in VRAM has copies below
(state,) = (fd for fd, what in files().items() if "greenboost-state" in what)
pause("filled")
letters = os.pread(state, 40, 4096)
here = [i for i in range(40) if letters[i] in b"12v"]
assert len(here) >= 8, letters
print("looked", flush=True)
data = np.zeros(512 << 10, dtype=np.uint32)
for turn in (here, range(40), range(40)):  # first while there is no daemon, as far as that goes
    for i in turn:
        result = cuda.cuMemcpyDtoH_v2(c_void_p(data.ctypes.data), held[i], c_size_t(data.nbytes))
        assert result == 0 or i not in here, (i, letters)
        assert result or ((data[:-1] == 1000 * i).all() and data[-1] == 1000 * i + 1), (i, letters)
print("right")
"""
)


def noticed(process: subprocess.Popen[str]) -> None:
    """The program's shim knows that its daemon is gone."""
    assert process.stderr is not None
    assert any("the daemon is gone" in line for line in process.stderr)


def test_what_is_not_in_t3_alone_outlives_t3(runner: Runner, daemons: Daemons) -> None:
    """What a path encrypts is lost with its daemon; whoever counts on it has to hear which that is."""
    daemons.encrypt = True
    daemons.start()
    with program(runner, daemons, "-c", LOSES) as process:
        assert said(process) == "filled"
        daemons.end(signal.SIGKILL)
        noticed(process)
        say(process)
        assert said(process) == "looked"
        daemons.start()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "right\n"), err
    assert "that were on NVMe are lost with the daemon" in err
    daemons.end_and_leave_nothing()


SHORT_OF_FILES = (
    BEGIN
    + """
import resource
held = allocated(40)
first, second = sorted(set(range(4096)) - set(files()))[:2]  # which is when nothing else is opened
pause("filled")
before = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (second, before[1]))  # one more: enough for a socket
pause("short")
resource.setrlimit(resource.RLIMIT_NOFILE, before)
assert all(right(address, 1000 * i) for i, address in enumerate(held))
print("right")
"""
)


def test_who_can_open_no_file_tries_again(runner: Runner, daemons: Daemons) -> None:
    daemons.start()
    with program(runner, daemons, "-c", SHORT_OF_FILES) as process:
        assert said(process) == "filled"
        daemons.end(signal.SIGKILL)
        noticed(process)
        say(process)
        assert said(process) == "short"
        daemons.start()
        assert process.stderr is not None
        assert "does not go on with this program yet: Too many open files" in process.stderr.readline()
        say(process)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "right\n"), err
    daemons.end_and_leave_nothing()


FORKS = (
    BEGIN
    + """
def ours():
    return sorted(what for what in files().values() if what.startswith("socket:") or "greenboost" in what)

held = allocated(20)
pause("filled")
# The socket of before and the one that is tried, the state, and arenas.
assert len(ours()) > 3, ours()
child = os.fork()
if not child:
    os._exit(len([what for what in ours() if "libgreenboost" not in what]))
assert os.waitpid(child, 0)[1] == 0
print("forked", flush=True)
assert all(right(address, 1000 * i) for i, address in enumerate(held))
print("right")
"""
)


def test_a_daemon_that_breaks_off_and_a_child_of_that_moment(runner: Runner, daemons: Daemons) -> None:
    daemons.start()
    with program(runner, daemons, "-c", FORKS) as process:
        assert said(process) == "filled"
        daemons.end(signal.SIGKILL)
        (daemons.folder / "socket").unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(daemons.folder / "socket"))
            listener.listen()
            connection, _ = listener.accept()
            with connection:
                assert b"hello" in connection.recv(1 << 16)
                say(process)
                assert said(process) == "forked"
        (daemons.folder / "socket").unlink()
        daemons.start()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "right\n"), err
    daemons.end_and_leave_nothing()


TWO_DEVICES = (
    BEGIN
    + """
second, held = c_void_p(), []
assert cuda.cuDevicePrimaryCtxRetain(byref(second), 1) == 0
for i in range(32):
    assert cuda.cuCtxSetCurrent((context, second)[i % 2]) == 0
    held.append(c_uint64())
    assert cuda.cuMemAlloc_v2(byref(held[-1]), c_size_t(2 * MIB)) == 0
    fill(held[-1], 1000 * i)
pause("filled")
for i, address in enumerate(held):
    assert cuda.cuCtxSetCurrent((context, second)[i % 2]) == 0
    assert right(address, 1000 * i), i
print("right")
"""
)


def test_each_device_of_a_program_goes_on(runner: Runner, daemons: Daemons) -> None:
    daemons.start()
    with program(runner, daemons, "-c", TWO_DEVICES, SOFTCUDA_DEVICES="2") as process:
        assert said(process) == "filled"
        daemons.end(signal.SIGKILL)
        daemons.start()
        say(process)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "right\n"), err
    assert err.count("the daemon is back") == 2
    daemons.end_and_leave_nothing()


def test_two_programs_one_of_which_dies_meanwhile(runner: Runner, daemons: Daemons) -> None:
    daemons.spill = 193
    daemons.start()
    with (
        program(runner, daemons, "-c", WAITS) as one,
        program(runner, daemons, "-c", WAITS) as other,
    ):
        assert said(one) == said(other) == "filled"
        daemons.end(signal.SIGKILL)
        one.kill()
        one.wait()
        daemons.start()
        say(other)
        out, err = other.communicate(timeout=PATIENCE)
        assert (other.returncode, out) == (0, "goes on\nright\n"), err
        one.communicate()
    daemons.end_and_leave_nothing()


def test_a_model_gives_the_same_numbers(runner: Runner, daemons: Daemons, tmp_path: Path) -> None:
    """The demo's, 91 MB of weights: the daemon dies in the middle of it, time and again."""
    alone, tiered = tmp_path / "alone.npz", tmp_path / "tiered.npz"
    path = {"PYTHONPATH": str(ROOT / "tools")}
    subprocess.run(
        [*sanitizer.prefix(), sys.executable, "-m", "minilm", "--out", alone],
        env=runner.environment("256MiB", **path),
        check=True,
        timeout=PATIENCE,
    )
    daemon = daemons.start(150)
    deaths = 0
    with program(
        runner, daemons, "-m", "minilm", "--out", str(tiered), GREENBOOST_VRAM=str(56 * MIB), **path
    ) as process:
        while outlives(process, daemon):
            deaths += 1
            daemon = daemons.start(80 + 40 * deaths, ready=False)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert deaths >= 2
    with np.load(alone) as expected, np.load(tiered) as got:
        for name in ("first", "second"):
            assert expected[name].tobytes() == got[name].tobytes()
