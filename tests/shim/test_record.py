# SPDX-License-Identifier: GPL-2.0-or-later
"""`greenboost run --record`: what a program launched is in the file, also if it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .pieces import BEGIN
from .tiers import Runner

SMALL = "--chunk 2MiB --vram 40MiB --ram 16MiB --record {dir}/trace.jsonl"

PROGRAM = (
    BEGIN
    + """
import os, signal, time
module, function, address = c_void_p(), c_void_p(), c_uint64()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
assert cuda.cuModuleGetFunction(byref(function), module, b"add_u32") == 0
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(8 << 20)) == 0
assert cuda.cuMemsetD8_v2(address, ctypes.c_ubyte(1), c_size_t(8 << 20)) == 0
count = c_uint64(1)
pointers = (c_void_p * 4)(*(ctypes.addressof(p) for p in (address, address, address, count)))
for _ in range(300):
    assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None) == 0
assert cuda.cuCtxSynchronize() == 0
if sys.argv[1] == "kill":
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
assert cuda.cuMemFree_v2(address) == 0
"""
)


def lines(runner: Runner, how: str) -> list[dict[str, Any]]:
    result = runner.tiered(SMALL, "-c", PROGRAM, how)
    assert result.status == (128 + 9 if how == "kill" else 0), result.err
    return [json.loads(line) for line in (runner.folder / "trace.jsonl").read_text().splitlines()]


def check(trace: list[dict[str, Any]]) -> None:
    assert trace[0]["greenboost_trace"] == 1
    assert trace[0]["chunk"] == 2 << 20
    (alloc,) = (line for line in trace if line.get("op") == "alloc")
    assert alloc["bytes"] == 8 << 20
    # In pieces of an eighth of VRAM, as it is issued.
    fills = [line["o"] for line in trace if line.get("op") == "copy"]
    assert fills == [[[alloc["a"], at, at + (4 << 20), "w"]] for at in (0, 4 << 20)]
    launches = [line for line in trace if line.get("op") == "launch"]
    assert len(launches) == 300
    for launch in launches:
        assert {tuple(o[:3]) for o in launch["o"]} == {(alloc["a"], 0, 8 << 20)}
        assert launch["gpu"] > 0
    (function,) = (line for line in trace if line.get("op") == "function")
    assert (function["f"], function["name"]) == (launches[0]["f"], "add_u32")
    assert [launch["t"] for launch in launches] == sorted(launch["t"] for launch in launches)


def test_every_launch_and_copy_is_recorded(runner: Runner) -> None:
    trace = lines(runner, "end")
    check(trace)
    assert trace[-1]["op"] == "free"


def test_a_killed_program_leaves_what_it_did(runner: Runner) -> None:
    check(lines(runner, "kill"))


def test_a_directory_is_refused(runner: Runner, tmp_path: Path) -> None:
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 16MiB --record {dir}", "-c", "")
    assert result.status == 2
    assert f"--record: {tmp_path} is a directory; give a file" in result.err
