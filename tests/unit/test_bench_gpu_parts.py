# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of greenboost bench gpu that touch the machine: groups, NVML, disks, programs."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tierd.cli.bench_gpu_cgroup import RamCap, RamCapError
from tierd.cli.bench_gpu_disk import bytes_to_read, open_disk
from tierd.cli.bench_gpu_nvml import VramMeter
from tierd.cli.bench_gpu_program import Said, run_program
from tierd.cli.errors import CommandError
from tierd.cli.signals import hold_signals

MIB = 1 << 20


def mounts(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "mounts"
    file.write_text("".join(f"{line}\n" for line in ("proc /proc proc rw 0 0", *lines)))
    return file


def version_2(tmp_path: Path, controllers: str) -> Path:
    """A tree that looks like one of version 2, though nothing obeys it."""
    root = tmp_path / "v2 tree"
    root.mkdir()
    (root / "cgroup.controllers").write_text(controllers)
    (root / "cgroup.subtree_control").write_text("")
    return root


def test_version_2_where_it_has_memory(tmp_path: Path) -> None:
    root = version_2(tmp_path, "cpu memory\n")
    line = f"cgroup2 {str(root).replace(' ', chr(92) + '040')} cgroup2 rw 0 0"
    cap = RamCap(100 * MIB, mounts=mounts(tmp_path, "cgroup /v1 cgroup rw,memory 0 0", line))
    group = root / f"greenboost-bench-{os.getpid()}"
    assert (root / "cgroup.subtree_control").read_text() == "+memory"
    assert (group / "memory.max").read_text() == str(100 * MIB)
    cap.enter(42)
    assert (group / "cgroup.procs").read_text() == "42"
    assert cap.peak() is None
    (group / "memory.peak").write_text("12345\n")
    assert cap.peak() == 12345


def test_no_group(tmp_path: Path) -> None:
    root = version_2(tmp_path, "cpu\n")
    line = f"cgroup2 {str(root).replace(' ', chr(92) + '040')} cgroup2 rw 0 0"
    with pytest.raises(RamCapError, match="no control groups with a memory controller"):
        RamCap(MIB, mounts=mounts(tmp_path, line))
    with pytest.raises(RamCapError, match="/none"):
        RamCap(MIB, mounts=mounts(tmp_path, "cgroup /none cgroup rw,memory 0 0"))


def test_the_cap_holds() -> None:
    """Page cache counts, and does not outgrow it; memory that cannot be given back ends the process."""
    try:
        cap = RamCap(64 * MIB)
    except RamCapError as error:
        pytest.skip(f"no group with a limit can be made here: {error}")
    take = "import os, sys; x = bytearray(int(sys.argv[1]) << 20); os.write(1, b'taken')"
    with cap:
        for size, taken in (("8", b"taken"), ("200", b"")):
            done = subprocess.run(
                [sys.executable, "-c", take, size], preexec_fn=cap.enter, capture_output=True, check=False
            )
            assert done.stdout == taken
        assert (cap.peak() or 0) <= 64 * MIB
    assert done.returncode == -signal.SIGKILL
    cap.close()


NVML = """
#include <string.h>
struct memory { unsigned long long total, free, used; };
static unsigned long long used[] = { 100, 300, 700, 200 }, *next = used;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **d) { *d = used; return strcmp(uuid, "GPU-1-2"); }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { (void)i; *d = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, struct memory *m) { m->used = *next++; return d != used; }
"""


def test_vram_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvml.so"
    command = ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-o", str(library), "-"]
    subprocess.run(command, input=NVML, text=True, check=True)
    monkeypatch.setattr("tierd.cli.bench_gpu_nvml._LIBRARY", str(library))
    # PyTorch's name of a GPU lacks NVML's prefix.
    with VramMeter("1-2") as meter:
        assert meter.most is None
        for most in (200, 600, 600):
            meter.look()
            assert meter.most == most


def test_without_nvml_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierd.cli.bench_gpu_nvml._LIBRARY", "/none/libnvidia-ml.so.1")
    with VramMeter("1-2") as meter:
        meter.look()
        assert meter.most is None


@pytest.mark.parametrize("fio", [True, False])
def test_reads(disk: Path, fio: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fio:
        monkeypatch.setattr("shutil.which", lambda name: None)
    with open_disk(disk / "spill", size=48 * MIB, block=2 * MIB) as file:
        speed = file.speed
        assert speed.method == "pread" or (fio and speed.method.startswith("fio-"))
        assert speed.best == max(speed.sequential, speed.random) > 0
        assert file.rate() > 0
        assert list(disk.iterdir()) == []


def test_a_slow_disk_is_not_read_again_to_the_end(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("tierd.cli.bench_gpu_disk._AGAIN", 0.0)
    read = os.preadv
    reads: list[int] = []

    def counted(fd: int, to: list[mmap.mmap], offset: int) -> int:
        reads.append(offset)
        return read(fd, to, offset)

    with open_disk(disk / "spill", size=64 * MIB, block=2 * MIB) as file:
        monkeypatch.setattr("os.preadv", counted)
        assert file.rate() > 0
    assert len(reads) == 8


def test_what_is_read_is_as_large_as_the_spill_file_within_bounds() -> None:
    assert bytes_to_read(MIB, 2 * MIB) == 32 * MIB
    assert bytes_to_read(49 * MIB, 2 * MIB) == 48 * MIB
    assert bytes_to_read(1 << 40, 64 * MIB) == 4 << 30


def test_reads_nowhere(tmp_path: Path) -> None:
    nowhere = open_disk(tmp_path / "none" / "spill", size=MIB, block=2 * MIB)
    with pytest.raises(CommandError, match="cannot be measured: no such file"):
        nowhere.__enter__()


def run(script: str, seconds: float = 60.0) -> tuple[Said, list[str]]:
    """What a Python program said, and the marks it came to."""
    said = Said()
    marks: list[str] = []
    with hold_signals() as held:
        run_program(
            [sys.executable, "-c", script],
            said,
            environ=os.environ,
            held=held,
            seconds=seconds,
            at_mark=marks.append,
        )
    return said, marks


SPEAK = "import json, sys, time\ndef say(**fields): print(json.dumps(fields), flush=True)\n"


def test_a_program_waits_at_its_marks() -> None:
    said, marks = run(
        SPEAK
        + "say(event='mark', name='a'); sys.stdin.readline(); say(event='after'); print('[1]\\n{nonsense')"
    )
    assert marks == ["a"]
    assert [event["event"] for event in said.events] == ["mark", "after"]
    assert said.last("after") == {"event": "after"}
    assert said.last("none") == {}
    assert (said.status, said.cut) == (0, False)


def test_a_program_that_fails() -> None:
    said, _ = run("import sys\nprint('hello', file=sys.stderr)\nraise MemoryError('CUDA: out of memory')")
    assert said.status == 1
    assert said.complaint() == "MemoryError: CUDA: out of memory"
    assert Said(status=3).complaint() == "exit status 3"
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")[0].status == 128 + signal.SIGSEGV


def test_a_program_that_takes_too_long() -> None:
    """It ends with all of its children, and what it said until then is there."""
    said, marks = run(
        SPEAK + "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\n"
        "say(event='child', pid=child.pid)\n"
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); time.sleep(1000)",
        seconds=3,
    )
    assert said.cut
    assert marks == ["cut"]
    assert said.status == 7
    pid = said.last("child")["pid"]
    status = Path(f"/proc/{pid}/stat")
    assert not status.exists() or status.read_text().split(")")[1].split()[0] == "Z"


def test_no_such_program() -> None:
    with hold_signals() as held, pytest.raises(FileNotFoundError):
        run_program(["/none/python"], Said(), environ={}, held=held, seconds=1)
