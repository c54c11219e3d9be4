# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon and fio in turn on the same files: what is compared with what, and how.

To compare the two and nothing else:

- The files are written once before anything is measured, so neither pays for first use of blocks.
- Both transfer from and to the same pages: fio maps our arenas. In virtual machines the physical
  pages alone decided between 3.5 and 9 GB/s, and every start of fio drew new ones.
- Both move each chunk of the files once a run, in random order, with as many under way: they begin
  and end alike.
- Disks that are shared or throttled change from second to second, so the two take turns, each
  first in every other pair, and what counts is the ratio within a pair.
- With several paths both are measured until the last byte is there, as fio does for a group of jobs.
  Jobs on one disk do not end together, and the sum of what each had until its own end is more than
  the disk ever gave: 4 to 21% more with four.
- A fetch gives its extent back, so something has to be spilled before something can be fetched.
  That happens before the clock starts, and before fio's turn just the same.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .bench_fio import FioJob, FioRun, run_fio
from .bench_session import BenchSession, Move

__all__ = [
    "DIRECTIONS",
    "Latency",
    "Pair",
    "Target",
    "Throughput",
    "measure_latency",
    "measure_throughput",
    "write_once",
]

DIRECTIONS = ("write", "read", "mixed")

_HELD: Mapping[str, Callable[[int], int]] = {
    "write": lambda chunks: 0,
    "read": lambda chunks: chunks,
    "mixed": lambda chunks: chunks // 2,
}
"""How many chunks T3 holds before a run."""

_FETCHES = 100
"""Single fetches of one run; fewer where there are fewer chunks."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured: a daemon with nothing else to do."""

    session: BenchSession
    daemon: int  #: pid
    jobs: Sequence[FioJob]  #: fio's view of the same files and arenas
    offset: int  #: bytes in front of the files' first chunk
    depth: int  #: chunks under way for each file
    rounds: int  #: pairs at least
    seconds: float  #: that both together are measured at least

    @property
    def lanes(self) -> int:
        """Chunks under way in all."""
        return self.depth * len(self.jobs)


@dataclass(frozen=True, slots=True)
class Pair:
    """A run of ours and one of fio's."""

    rate: float  #: bytes/s, ours
    daemon_cpu: float  #: seconds of processor time a byte
    client_cpu: float
    fio_rate: float
    fio_summed: float  #: bytes/s: the sum of its jobs' rates
    fio_cpu: float

    @property
    def ratio(self) -> float:
        """Ours in terms of fio's."""
        return self.rate / self.fio_rate


@dataclass(frozen=True, slots=True)
class Throughput:
    """One direction at one chunk size."""

    direction: str
    chunk: int  #: bytes
    depth: int
    pairs: tuple[Pair, ...]

    def median(self, what: Callable[[Pair], float]) -> float:
        """The median over the pairs."""
        return statistics.median(map(what, self.pairs))


@dataclass(frozen=True, slots=True)
class Latency:
    """Fetches one at a time at one chunk size, seconds: medians over the pairs."""

    chunk: int  #: bytes
    fetches: int  #: of ours
    median: float
    p99: float
    fio_median: float
    fio_p99: float
    over: float  #: a pair's median over fio's


def measure_throughput(target: Target, direction: str) -> Throughput:
    """Pairs in one direction. Raises CommandError."""
    pairs: list[Pair] = []
    measured = 0.0
    while len(pairs) < target.rounds or measured < target.seconds:
        if len(pairs) % 2:
            theirs = _fio(target, direction)
            ours = _ours(target, direction)
        else:
            ours = _ours(target, direction)
            theirs = _fio(target, direction)
        pairs.append(
            Pair(ours.rate, ours.daemon_cpu, ours.client_cpu, theirs.rate, theirs.summed, theirs.cpu)
        )
        measured += target.session.chunks * target.session.chunk * (1 / ours.rate + 1 / theirs.rate)
    return Throughput(direction, target.session.chunk, target.depth, tuple(pairs))


def measure_latency(target: Target) -> Latency:
    """Fetches one at a time beside reads of fio's. Raises CommandError."""
    session = target.session
    fetches = min(_FETCHES, session.chunks)
    ours: list[list[float]] = []
    theirs: list[FioRun] = []

    def fetch() -> None:
        chunks = _prepare(session, session.chunks, target.lanes)[:fetches]  # from anywhere, as fio's
        ours.append(session.run([Move("fetch", chunk) for chunk in chunks], 1))

    def read() -> None:
        _prepare(session, session.chunks, target.lanes)
        theirs.append(
            run_fio(
                target.jobs[:1], "read", chunk=session.chunk, depth=1, offset=target.offset, requests=fetches
            )
        )

    for number in range(target.rounds):
        for run in (read, fetch) if number % 2 else (fetch, read):
            run()
    medians = [statistics.median(took) for took in ours]
    together = sorted(itertools.chain.from_iterable(ours))
    return Latency(
        chunk=session.chunk,
        fetches=len(together),
        median=statistics.median(together),
        p99=together[math.ceil(0.99 * len(together)) - 1],
        fio_median=statistics.median(run.median for run in theirs),
        fio_p99=statistics.median(run.p99 for run in theirs),
        over=statistics.median(mine - fio.median for mine, fio in zip(medians, theirs, strict=True)),
    )


def write_once(target: Target) -> None:
    """Use every block of the files, so that no run is the first to. Raises CommandError."""
    _prepare(target.session, target.session.chunks, target.lanes)


@dataclass(frozen=True, slots=True)
class _Run:
    rate: float
    daemon_cpu: float
    client_cpu: float


def _ours(target: Target, direction: str) -> _Run:
    session = target.session
    held = _prepare(session, _HELD[direction](session.chunks), target.lanes)
    moves = _moves(session.chunks, held)
    began, daemon, client = time.perf_counter(), _cpu_of(target.daemon), time.process_time()
    session.run(moves, target.lanes)
    seconds = time.perf_counter() - began
    size = len(moves) * session.chunk
    return _Run(
        size / seconds, (_cpu_of(target.daemon) - daemon) / size, (time.process_time() - client) / size
    )


def _fio(target: Target, direction: str) -> FioRun:
    session = target.session
    _prepare(session, _HELD[direction](session.chunks), target.lanes)
    return run_fio(target.jobs, direction, chunk=session.chunk, depth=target.depth, offset=target.offset)


def _prepare(session: BenchSession, held: int, lanes: int) -> list[int]:
    """Have T3 hold so many chunks, just written and chosen at random; they, in random order."""
    session.drop(_shuffled(session.held))
    chunks = random.sample(range(session.chunks), held)
    session.run([Move("spill", chunk) for chunk in chunks], lanes)
    return _shuffled(chunks)


def _moves(chunks: int, held: Sequence[int]) -> list[Move]:
    """Fetch what is held and spill the rest, in turn."""
    fetches = [Move("fetch", chunk) for chunk in held]
    spills = [Move("spill", chunk) for chunk in _shuffled(set(range(chunks)) - set(held))]
    pairs = itertools.zip_longest(fetches, spills)
    return [move for pair in pairs for move in pair if move is not None]


def _shuffled(chunks: Iterable[int]) -> list[int]:
    order = list(chunks)
    random.shuffle(order)
    return order


def _cpu_of(pid: int) -> float:
    """Seconds of processor time that the process has had, all its threads together, ended ones too."""
    # clock_getcpuclockid(3), which Python lacks: CPUCLOCK_SCHED of a process. /proc/PID/stat counts
    # in hundredths of a second only.
    return time.clock_gettime(~pid << 3 | 2)
