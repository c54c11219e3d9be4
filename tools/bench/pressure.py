#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long 1 GiB takes to come back once RAM is short, against the disk alone.

    python tools/bench/pressure.py --spill FILE [--rounds N] [--json]

In each round a daemon serves a program on the software device that keeps most of its memory in RAM.
Another process then takes memory until less is available than the daemon's reserve. Measured is the
time from that crossing, as seen in /proc/meminfo every millisecond, until the daemon has closed arenas
of --size bytes (1 GiB), and, before and after it in the same round, how long fio takes to write as much
to the daemon's spill file. At the end the program compares every byte with what it wrote.

FILE is made and removed. Some GiB of RAM have to be available; the crossing is where the reserve is set,
so it is not short for anybody else. Seconds and bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tierd import memory, wire  # noqa: E402
from tierd.cli.bench_fio import FioJob, fio_version, run_fio  # noqa: E402
from tierd.model import parse_size  # noqa: E402

MIB, GIB = 1 << 20, 1 << 30
SOFTCUDA = ROOT / "tools/softcuda/build/libcuda.so.1"
SHIM = ROOT / "shim/build/libgreenboost_cuda.so"
DEPTH = 8
PATIENCE = 120.0
POLL = 0.01

# Fills so many chunks with bytes of which no two chunks have the same, and compares them when told to.
PROGRAM = """
import ctypes, os, sys
from ctypes import byref, c_size_t, c_uint64, c_void_p
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    assert (code := getattr(cuda, name)(*arguments)) == 0, (name, code)
chunk, count = int(sys.argv[1]), int(sys.argv[2])
context, memory = c_void_p(), c_uint64()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuMemAlloc_v2", byref(memory), c_size_t(count * chunk))
content = bytearray(os.urandom(chunk))
got = bytearray(chunk)
def address(of): return (ctypes.c_char * chunk).from_buffer(of)
for n in range(count):
    content[:8] = n.to_bytes(8, "little")
    call("cuMemcpyHtoD_v2", c_uint64(memory.value + n * chunk), address(content), c_size_t(chunk))
print("ready", flush=True)
sys.stdin.readline()
for n in range(count):
    content[:8] = n.to_bytes(8, "little")
    call("cuMemcpyDtoH_v2", address(got), c_uint64(memory.value + n * chunk), c_size_t(chunk))
    assert got == content, f"chunk {n} has changed"
print("right", flush=True)
"""

# Takes memory until less than so much is available, and then so much more.
EATER = """
import sys
from tierd import memory
low, more = map(int, sys.argv[1:])
taken = []
while memory.machine().available >= low:
    taken.append(b"x" * (1 << 20))
taken += [b"x" * (1 << 20) for _ in range(0, more, 1 << 20)]
print("full", flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One round, seconds; from the crossing on where nothing else is said."""

    fio: tuple[float, float]  #: for as many bytes, before and after
    noticed: float  #: the daemon says that RAM is short
    first: float  #: the first arena is back
    returned: float  #: all that was to be measured is
    available: float  #: and available memory has risen by as much again
    returned_bytes: int  #: which are whole arenas
    cpu: tuple[float, float]  #: processor time until then, of the daemon and of the program
    ratio: float  #: per byte, against fio


@contextmanager
def daemon(
    options: argparse.Namespace, directory: Path, reserve: int, spill: int
) -> Iterator[tuple[Path, int]]:
    """The daemon's socket, and its process id."""
    socket = directory / "sock"
    command = [sys.executable, "-m", "tierd.cli", "daemon", "--config", os.devnull]
    command += [f"--socket={socket}", f"--ram={options.ram}", f"--chunk={options.chunk}"]
    command += [f"--reserve={reserve}", f"--spill={options.spill}:{spill}"]
    if options.arena:
        command.append(f"--arena={options.arena}")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"the daemon does not start; run it by hand: {' '.join(command)}")
                time.sleep(0.01)
            yield socket, process.pid
        finally:
            process.terminate()


@contextmanager
def talking(code: str, *arguments: object, **environ: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, env=os.environ | environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if said != word:
        sys.exit(f"a program was to say {word!r} and said {said!r}")


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def fio(options: argparse.Namespace) -> float:
    """Seconds for options.size bytes, written to the daemon's own file, whose extents are free."""
    chunk = parse_size(options.chunk)
    buffers = os.memfd_create("buffers")
    try:
        os.ftruncate(buffers, DEPTH * chunk)
        job = FioJob(str(options.spill), f"/proc/{os.getpid()}/fd/{buffers}", options.size // chunk)
        rate = run_fio([job], "write", chunk=chunk, depth=DEPTH, offset=MIB).rate
    finally:
        os.close(buffers)
    seconds: float = options.size / rate
    return seconds


def cpu_time(pid: int) -> float:
    """Seconds so far (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(
    socket: Path, low: int, size: int, pids: tuple[int, int]
) -> tuple[dict[str, float], int, tuple[float, float]]:
    """When things were seen, by time.monotonic(), the bytes that were returned, and processor times."""
    seen: dict[str, float] = {}
    least = low
    deadline = time.monotonic() + PATIENCE
    while memory.machine().available >= low:
        if time.monotonic() > deadline:
            sys.exit("memory does not become short: something else gives it back")
        time.sleep(0.001)
    seen["crossed"] = time.monotonic()
    before = [cpu_time(pid) for pid in pids]
    with wire.connect(socket) as client:
        while "available" not in seen or "returned" not in seen:
            time.sleep(POLL)  # to ask takes the daemon's time
            available = memory.machine().available
            answer: Any = client.call("status")
            pressure, now = answer["snapshot"]["pressure"], time.monotonic()
            if pressure["level"] != "calm":
                seen.setdefault("noticed", now)
            if pressure["returned_bytes"]:
                seen.setdefault("first", now)
            else:
                least = min(least, available)
            if pressure["returned_bytes"] >= size and "returned" not in seen:
                seen["returned"] = now
                returned = pressure["returned_bytes"]
                cpu = tuple(cpu_time(pid) - was for pid, was in zip(pids, before, strict=True))
            if available >= least + size * 0.9:
                seen.setdefault("available", now)
            if now > deadline:
                sys.exit(
                    f"after {PATIENCE:.0f} s only {pressure['returned_bytes']} bytes are back: {pressure}"
                )
    return seen, returned, (cpu[0], cpu[1])


def one_round(options: argparse.Namespace) -> Round:
    chunk, ram = parse_size(options.chunk), parse_size(options.ram)
    vram = 4 * chunk
    chunks = (vram + ram) // chunk - 4
    # What the program takes, some more to cross the line with, and what others may do meanwhile.
    reserve = memory.machine().available - 2 * vram - ram - 1 * GIB
    if reserve < 2 * options.size:
        sys.exit("too little RAM is available here: give a smaller --ram or --size")
    with tempfile.TemporaryDirectory(prefix="gb-") as name:
        directory = Path(name)
        with daemon(options, directory, reserve, MIB + chunks * chunk + 8 * chunk) as (socket, pid):
            fio(options)  # what a file system writes for the first time takes longer
            before = fio(options)
            environ = {
                "LD_LIBRARY_PATH": str(SOFTCUDA.parent),
                "LD_PRELOAD": str(SHIM),
                "GREENBOOST_SOCKET": str(socket),
                "GREENBOOST_CUDA_DRIVER": str(SOFTCUDA),
                "GREENBOOST_VRAM": str(vram),
                "SOFTCUDA_VRAM": str(2 * vram),
            }
            with talking(PROGRAM, chunk, chunks, **environ) as program:
                hear(program, "ready")
                with talking(EATER, reserve, 64 * MIB, PYTHONPATH=str(ROOT)) as eater:
                    seen, returned, cpu = watch(socket, reserve, options.size, (pid, program.pid))
                    hear(eater, "full")
                tell(program)
                hear(program, "right")
            after = fio(options)
    took = {name: at - seen["crossed"] for name, at in seen.items()}
    return Round(
        fio=(before, after),
        noticed=took["noticed"],
        first=took["first"],
        returned=took["returned"],
        available=took["available"],
        returned_bytes=returned,
        cpu=cpu,
        ratio=took["returned"] / returned / (statistics.mean((before, after)) / options.size),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="From a crossed watermark to memory given back, against fio."
    )
    parser.add_argument("--spill", type=Path, required=True, metavar="FILE", help="is made and removed")
    parser.add_argument("--ram", default="2GiB", help="of the daemon's (2GiB)")
    parser.add_argument("--chunk", default="16MiB", help="unit of movement (16MiB)")
    parser.add_argument("--arena", help="unit of what is given back (the daemon's default)")
    parser.add_argument("--size", type=parse_size, default=GIB, help="to be given back (1GiB)")
    parser.add_argument("--rounds", type=int, default=5, help="how often (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object: seconds, bytes")
    options = parser.parse_args()
    if options.spill.exists():
        parser.error(f"{options.spill} exists; give a name that can be made and removed")
    fio_version()
    rounds = [one_round(options) for _ in range(options.rounds)]
    ratios = [each.ratio for each in rounds]
    figures = {
        "ram_bytes": parse_size(options.ram),
        "chunk_bytes": parse_size(options.chunk),
        "size_bytes": options.size,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": [asdict(each) for each in rounds],
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for each in rounds:
        print(
            f"fio {each.fio[0]:.2f} and {each.fio[1]:.2f} s; noticed after {each.noticed * 1000:.0f} ms, "
            f"first arena back after {each.first:.2f} s, {each.returned_bytes / MIB:.0f} MiB after "
            f"{each.returned:.2f} s (available after {each.available:.2f} s): {each.ratio:.2f}; "
            f"processor time {each.cpu[0]:.2f} s (daemon), {each.cpu[1]:.2f} s (program)"
        )
    print(f"ratio {figures['ratio']:.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
