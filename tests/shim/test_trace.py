# SPDX-License-Identifier: GPL-2.0-or-later
"""`greenboost run --trace`: a file that viewers open, and that says what the program did."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from .pieces import BEGIN
from .tiers import Result, Runner

Event = dict[str, Any]

CHUNK = 2 << 20
SMALL = (
    "--chunk 2MiB --vram 16MiB --ram 16MiB --arena 8MiB --spill {dir}/spill:64MiB --trace {dir}/trace.json"
)

PROGRAM = (
    BEGIN
    + """
import os, signal, time
module, function = c_void_p(), c_void_p()
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
assert cuda.cuModuleGetFunction(byref(function), module, b"add_u32") == 0
held = []
for i in range(10):  # 40 MiB: more than VRAM and RAM
    held.append(c_uint64())
    assert cuda.cuMemAlloc_v2(byref(held[i]), c_size_t(4 << 20)) == 0
    assert cuda.cuMemsetD8_v2(held[i], ctypes.c_ubyte(i), c_size_t(4 << 20)) == 0
count = c_uint64(1 << 20)
for address in held * 3:
    pointers = (c_void_p * 4)(*(ctypes.addressof(p) for p in (address, address, address, count)))
    assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None) == 0
assert cuda.cuCtxSynchronize() == 0
if "fork" in sys.argv:
    child = os.fork()
    if not child:
        sys.exit(0)  # runs what runs at a program's end
    assert os.waitpid(child, 0)[1] == 0
if "kill" in sys.argv:
    # An idle writer writes what it has.
    while open(os.environ["GREENBOOST_TRACE"]).read().count('"cat":"kernel"') < 30:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
for address in held:
    assert cuda.cuMemFree_v2(address) == 0
"""
)


def traced(runner: Runner, *argv: str, status: int = 0, flags: str = SMALL) -> tuple[Result, list[Event]]:
    result = runner.tiered(flags, "-c", PROGRAM, *argv)
    assert result.status == status, result.err
    events: list[Event] = json.loads((runner.folder / "trace.json").read_text())
    return result, events


def named(events: list[Event], *categories: str) -> list[Event]:
    return [event for event in events if event.get("cat") in categories]


def copied(events: list[Event], category: str) -> int:
    return sum(event["args"]["bytes"] for event in named(events, category) if event["ph"] != "e")


def check_shape(events: list[Event]) -> None:
    """What the format asks of each event, and of those of one track."""
    tracks: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        assert event["ph"] in "XMCibe"
        if event["ph"] != "M":
            assert event["ts"] > 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        open_until: list[float] = []
        # One of those that begin at once may lie in the other.
        for began, ended in sorted(slices, key=lambda one: (one[0], -one[1])):
            # Nanoseconds are exact but for what a float makes of the sum.
            while open_until and open_until[-1] <= began + 0.0005:
                open_until.pop()
            # Within what it began in, as calls are within calls.
            assert not open_until or ended <= open_until[-1] + 0.0005
            open_until.append(ended)


def test_it_says_what_the_counters_say(runner: Runner) -> None:
    result, events = traced(runner)
    check_shape(events)
    counters = result.counters
    assert copied(events, "to_vram") == counters["h2d_bytes"] > 0
    assert copied(events, "from_vram") == counters["d2h_bytes"] > 0
    assert copied(events, "fetch") == counters["fetch_bytes"] > 0
    assert copied(events, "spill") == counters["spill_bytes"] > 0
    evicted = [event for event in events if event["name"] == "evict"]
    assert len(evicted) == counters["evictions"]
    clean = [event for event in evicted if event["args"]["result"] == "clean"]
    assert len(clean) == counters["evictions_clean"]
    launches = named(events, "launch")
    assert len(launches) == counters["launches"] == 30
    assert {event["name"] for event in launches} == {"add_u32"}
    stalls = named(events, "stall")
    assert sum(event["args"]["bytes"] for event in stalls) == counters["chunk_stalls"] * CHUNK


def test_launches_name_their_chunks_and_run_on_their_streams(runner: Runner) -> None:
    _, events = traced(runner)
    launches, kernels = named(events, "launch"), named(events, "kernel")
    assert [event["args"]["chunks"] for event in launches] == [f"{2 * i}-{2 * i + 1}" for i in range(10)] * 3
    assert [event["args"]["chunks"] for event in kernels] == [event["args"]["chunks"] for event in launches]
    assert [event["ts"] for event in kernels] == sorted(event["ts"] for event in kernels)
    # A chunk is there before the kernel that reads it ends, and on its way after the last that did.
    copies = named(events, "to_vram")
    for kernel in kernels:
        first, last = map(int, kernel["args"]["chunks"].split("-"))
        for chunk in range(first, last + 1):
            assert any(copy["args"]["chunk"] == chunk for copy in copies)
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {tracks[event["tid"]] for event in copies} == {"copies RAM to VRAM"}
    assert {tracks[event["tid"]] for event in named(events, "from_vram")} == {"copies VRAM to RAM"}
    assert {tracks[event["tid"]] for event in kernels} == {"GPU stream 1"}
    of = {"evict": "greenboost-page", "register an arena": "greenboost-ram"}
    for name, track in of.items():
        assert {tracks[event["tid"]] for event in events if event["name"] == name} == {track}


STEP = (
    BEGIN
    + """
module, function = c_void_p(), c_void_p()
ctypes.CDLL("libstdc++.so.6")
nothing = ctypes.cast(ctypes.CDLL(None).getpid, c_void_p)
for name in (b"_ZN4work4stepILi8EEEvPfi", b"_Zwrong"):
    assert cuda.softcudaRegisterKernel(name, nothing, 1, (c_size_t * 1)(8)) == 0
assert cuda.cuModuleLoadData(byref(module), b"softcuda") == 0
held = [c_uint64() for _ in range(10)]  # more than VRAM
for address in held:
    assert cuda.cuMemAlloc_v2(byref(address), c_size_t(4 << 20)) == 0
parameter = (c_void_p * 1)(ctypes.addressof(held[0]))
"""
)


def test_kernels_have_the_names_that_people_write(runner: Runner) -> None:
    """Also where libstdc++ is there for some extension of Python's alone, as with PyTorch."""
    launch = """
for name in (b"_ZN4work4stepILi8EEEvPfi", b"_Zwrong"):
    assert cuda.cuModuleGetFunction(byref(function), module, name) == 0
    assert cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, parameter, None) == 0
assert cuda.cuCtxSynchronize() == 0
"""
    result = runner.tiered(SMALL, "-c", STEP + launch)
    assert result.status == 0, result.err
    events: list[Event] = json.loads((runner.folder / "trace.json").read_text())
    named_so = [event["name"] for event in named(events, "launch")]
    assert named_so == ["void work::step<8>(float*, int)", "_Zwrong"]


CONSTRUCTOR = """
extern int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                          void *, void **, void **);
extern void *function, **parameters;
__attribute__((constructor)) static void launch(void)
{
    for (int i = 0; i < 40000; i++)
        cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, parameters, 0);
}
"""


def test_a_library_may_launch_a_lot_while_it_is_loaded(runner: Runner, tmp_path: Path) -> None:
    """It has the loader's lock meanwhile, and waits for the writer, which must not want that."""
    for name, source in (
        ("given", "void *function, **parameters;"),
        ("constructor", CONSTRUCTOR),
    ):
        (tmp_path / f"{name}.c").write_text(source)
        command = ["cc", "-shared", "-fPIC", "-o", f"{tmp_path}/lib{name}.so", f"{tmp_path}/{name}.c"]
        subprocess.run(command, check=True)
    load = f"""
assert cuda.cuModuleGetFunction(byref(function), module, b"_ZN4work4stepILi8EEEvPfi") == 0
ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
given = ctypes.CDLL("{tmp_path}/libgiven.so", ctypes.RTLD_GLOBAL)
c_void_p.in_dll(given, "function").value = function.value
c_void_p.in_dll(given, "parameters").value = ctypes.addressof(parameter)
ctypes.CDLL("{tmp_path}/libconstructor.so")
assert cuda.cuCtxSynchronize() == 0
"""
    result = runner.tiered(SMALL, "-c", STEP + load)
    assert result.status == 0, result.err
    assert result.counters["launches"] == 40000


def test_stalls_are_within_the_launch_that_waits(runner: Runner) -> None:
    _, events = traced(runner)
    calls = named(events, "launch", "copy", "host")
    stalls = named(events, "stall")
    assert len(stalls) > 10
    for stall in stalls:
        (call,) = (
            call
            for call in calls
            if call["tid"] == stall["tid"]
            and call["ts"] <= stall["ts"]
            and stall["ts"] + stall["dur"] <= call["ts"] + call["dur"] + 0.0005
        )
        if call["cat"] == "host":
            assert call["name"] == "map new memory"
        else:
            assert call["args"]["waited_bytes"] == stall["args"]["bytes"]
    waited = sum(call["args"].get("waited_bytes", 0) for call in calls)
    assert 0 < waited <= sum(stall["args"]["bytes"] for stall in stalls)


def test_counters_over_time_add_up(runner: Runner) -> None:
    result, events = traced(runner)
    moved: defaultdict[str, float] = defaultdict(float)
    for event in named(events, "rate"):
        moved[event["name"]] += event["args"]["bytes a second"] / 100  # of pieces of 10 ms
    names = {
        "RAM to VRAM": "h2d_bytes",
        "VRAM to RAM": "d2h_bytes",
        "NVMe to RAM": "fetch_bytes",
        "RAM to NVMe": "spill_bytes",
    }
    assert moved == {direction: result.counters[name] for direction, name in names.items()}
    slots = [event["args"] for event in named(events, "slots")]
    assert max(one["VRAM"] for one in slots) == result.counters["vram_slots_most"]
    assert max(one["RAM"] for one in slots) == result.counters["arena_slots_most"]
    assert slots[-1]["VRAM"] == 0


def test_a_killed_program_leaves_what_it_did(runner: Runner) -> None:
    _, events = traced(runner, "kill", status=128 + 9)
    check_shape(events)
    assert copied(events, "to_vram") > 0
    assert len(named(events, "launch")) == 30
    (command,) = named(events, "command")
    assert command["args"] == {"status": 128 + 9}


def test_a_child_of_fork_writes_nothing(runner: Runner) -> None:
    result, events = traced(runner, "fork")
    check_shape(events)
    (session,) = result.report["sessions"]
    (command,) = named(events, "command")
    assert {event["pid"] for event in events} == {session["pid"], command["pid"]}
    # What was not yet written when it forked is there once.
    assert len(named(events, "launch")) == 30
    assert copied(events, "to_vram") == result.counters["h2d_bytes"]


def test_a_torn_line_is_taken_off(tmp_path: Path) -> None:
    from tierd.cli import tracefile

    file = tmp_path / "trace.json"
    tracefile.begin(file)
    with open(file, "ab") as trace:
        trace.write(b'{"name":"whole","ph":"i","ts":1},\n{"name":"to')
    tracefile.end(file, ["program"], tracefile.now(), 3, close=True)
    events = json.loads(file.read_text())
    assert [event["name"] for event in events] == ["whole", "process_name", "program"]


def test_several_processes_share_the_file(runner: Runner) -> None:
    twice = f"import subprocess, sys\nfor _ in range(2): subprocess.run([sys.executable, '-c', {PROGRAM!r}])"
    result = runner.tiered(SMALL, "-c", twice)
    assert result.status == 0, result.err
    events = json.loads((runner.folder / "trace.json").read_text())
    check_shape(events)
    pids = {session["pid"] for session in result.report["sessions"]}
    assert len(pids) == 2
    for pid in pids:
        assert len([event for event in named(events, "launch") if event["pid"] == pid]) == 30


def test_while_all_fits_there_are_allocations_alone(runner: Runner) -> None:
    flags = "--chunk 2MiB --vram 60MiB --ram 16MiB --trace {dir}/trace.json"
    result, events = traced(runner, flags=flags)
    assert result.counters["launches"] == 0
    assert not named(events, "launch", "to_vram")
    assert len(named(events, "stall")) == len([e for e in events if e["name"] == "map new memory"]) == 10
    allocated = [event for event in named(events, "moment") if event["name"] == "allocate"]
    assert [event["args"]["bytes"] for event in allocated] == [4 << 20] * 10


def test_a_directory_is_refused(runner: Runner, tmp_path: Path) -> None:
    result = runner.tiered("--chunk 2MiB --vram 40MiB --ram 16MiB --trace {dir}", "-c", "")
    assert result.status == 2
    assert f"--trace: {tmp_path} is a directory; give a file" in result.err
