# SPDX-License-Identifier: GPL-2.0-or-later
"""fio, as the yardstick: on given files, from and to given memory."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from .errors import CommandError
from .signals import hold_signals

__all__ = ["FioJob", "FioRun", "fio_version", "run_fio"]

_MODES = {"write": "randwrite", "read": "randread", "mixed": "randrw", "sequential": "read"}


@dataclass(frozen=True, slots=True)
class FioJob:
    """A file, and the memory that its transfers use."""

    file: str
    memory: str  #: a file too, of at least depth * chunk bytes
    chunks: int  #: that the file has


@dataclass(frozen=True, slots=True)
class FioRun:
    """What one run came to, all jobs together."""

    rate: float  #: bytes/s: all jobs' bytes over the time until the last was through
    summed: float  #: bytes/s: the sum of what each job had while it ran
    cpu: float  #: seconds of processor time a byte
    median: float  #: seconds from a request to its completion
    p99: float


def fio_version() -> str:
    """Which fio there is. Raises CommandError, saying how to get one."""
    if shutil.which("fio") is None:
        raise CommandError(
            "fio, which is compared with, is not installed; 'apt-get install fio', or what it is called here"
        )
    done = subprocess.run(["fio", "--version"], capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"fio --version failed: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def run_fio(
    jobs: Sequence[FioJob],
    direction: str,
    *,
    chunk: int,
    depth: int,
    offset: int,
    requests: int | None = None,
    seconds: float | None = None,
) -> FioRun:
    """Every chunk of every file once, or so many `requests` of each; `direction` is a key of _MODES.

    After `seconds` no more are begun.

    "sequential" reads in order, the others go in random order. The files begin at `offset`, bytes;
    `depth` requests of each are under way. Raises CommandError.
    """
    command = [
        "fio", "--output-format=json", "--thread", f"--rw={_MODES[direction]}", f"--bs={chunk}",
        f"--iodepth={depth}", f"--offset={offset}", "--randrepeat=0", "--lat_percentiles=1",
        "--ioengine=io_uring", "--direct=1", "--fixedbufs", "--registerfiles",
        # A new content for each request would cost fio time; a new place is enough.
        "--scramble_buffers=0",
        # Keep the file as it is: fio would otherwise replace it by a new one.
        "--fallocate=none", "--allow_file_create=0", "--overwrite=1",
    ]  # fmt: skip
    if requests is not None:
        command.append(f"--number_ios={requests}")
    if seconds is not None:
        command.append(f"--runtime={seconds:.0f}")
    for number, job in enumerate(jobs):
        command += [
            f"--name=path{number}",
            "--filename=" + job.file.replace(":", "\\:"),
            f"--size={job.chunks * chunk}",
            f"--mem=mmapshared:{job.memory}",
        ]
    status, out, errors = _run(command)
    try:
        # Notes of fio's may precede the JSON.
        ran = json.loads(out[out.index("{") :])["jobs"]
        if status or any(job["error"] for job in ran):
            raise ValueError
        return _summary(ran)
    except (ValueError, KeyError, ZeroDivisionError):
        said = (errors or out).strip().splitlines() or [f"exit status {status}"]
        raise CommandError(f"fio failed: {said[0]}; run it by hand: {' '.join(command)}") from None


def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """Its exit status, output and errors. An exception, as Ctrl-C is here, ends it."""
    with ExitStack() as undo:
        with hold_signals():  # an exception between its start and the next line would leave it running
            fio = undo.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            undo.callback(fio.kill)
        out, errors = fio.communicate()
        return fio.returncode, out, errors


def _summary(jobs: Sequence[dict[str, Any]]) -> FioRun:
    summed = cpu = size = longest = 0.0
    for job in jobs:
        sides = [job[side] for side in ("read", "write") if job[side]["io_bytes"]]
        moved = sum(side["io_bytes"] for side in sides)
        # Milliseconds, and a run of nothing but a few chunks may take none.
        seconds = max([1, *(side["runtime"] for side in sides)]) / 1000
        summed += moved / seconds
        longest = max(longest, seconds)
        cpu += (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
        size += moved
    side = max((jobs[0][side] for side in ("read", "write")), key=lambda side: side["io_bytes"])
    percentiles = side["lat_ns"]["percentile"]
    return FioRun(
        size / longest, summed, cpu / size, percentiles["50.000000"] / 1e9, percentiles["99.000000"] / 1e9
    )
