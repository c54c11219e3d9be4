#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The NVMe tier's engine against fio, on the same file, with the same block size and depth.

    python tools/bench/spill.py --path /mnt/nvme/bench --size 4GiB --chunk 2MiB --chunk 16MiB

Both go over the extents of the file in order, again and again, with `depth` chunks under way at any
moment: ours through SpillSet, checksums included, fio with io_uring, O_DIRECT, fixed buffers and
registered files. To compare engines and nothing else:

- The file is written once before anything is measured, so neither pays for first use of its blocks.
- Both transfer from and to the same pages: fio maps our arena. In virtual machines the physical
  pages alone decided between 3.5 and 9 GB/s, and every start of fio drew new ones.
- Disks that are shared or throttled change from second to second, so the two take turns, each
  first in every other pair, and the ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tierd.model import MAX_CHUNK, MIN_CHUNK, SizeError, parse_size
from tierd.nvme import Extent, SpillFile, SpillPathError, SpillSet
from tierd.nvme.ring import DEFAULT_ENTRIES, DEFAULT_PIECE
from tierd.nvme.spillpath import DATA_OFFSET


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over the file."""

    seconds: float
    rate: float  #: bytes/s
    cpu: float  #: seconds of processor time, user and system


@dataclass(frozen=True, slots=True)
class Result:
    """Ours and fio in one direction at one chunk size."""

    direction: str
    chunk: int  #: bytes
    depth: int  #: chunks under way
    ours: float  #: bytes/s, median
    fio: float  #: bytes/s, median
    ratio: float  #: median of the pairs' ratios
    ratios: tuple[float, ...]
    ours_cpu: float  #: cores busy per GB/s, median
    fio_cpu: float


class BenchArena:
    """`slots` chunks of shared memory, as tierd's arenas are."""

    id = 0

    def __init__(self, slots: int, chunk: int) -> None:
        self.chunk = chunk
        self.size = slots * chunk
        self.fd = os.memfd_create("bench", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._map = mmap.mmap(self.fd, self.size)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        self.memory = memoryview(self._map)
        noise = os.urandom(1 << 20)  # what no device or file system can compress
        for offset in range(0, self.size, len(noise)):
            self.memory[offset : offset + len(noise)] = noise

    def close(self) -> None:
        self.memory.release()
        self._map.close()
        os.close(self.fd)


async def ours(
    spill: SpillSet, arena: BenchArena, extents: Sequence[Extent], depth: int, write: bool, seconds: float
) -> Run:
    """Moves the extents for so long, or once if `seconds` is 0."""
    moved = 0
    begin, cpu = time.perf_counter(), time.process_time()
    end = begin + seconds

    async def lane(slot: int) -> None:
        nonlocal moved
        transfer = spill.store if write else spill.load
        # Each lane has its own extents: a slow one must not be overtaken by a whole round.
        for extent in itertools.cycle(extents[slot::depth]):
            await transfer(extent, arena, slot)
            moved += 1
            if time.perf_counter() >= end and (seconds or extent is extents[slot::depth][-1]):
                break

    async with trio.open_nursery() as nursery:
        for slot in range(depth):
            nursery.start_soon(lane, slot)
    taken = time.perf_counter() - begin
    return Run(taken, moved * arena.chunk / taken, time.process_time() - cpu)


def fio(path: str, arena: BenchArena, extents: int, depth: int, write: bool, seconds: float) -> Run:
    """The same with fio. Raises CalledProcessError."""
    command = [
        "fio", "--name=spill", f"--filename={path}", f"--rw={'write' if write else 'read'}",
        "--ioengine=io_uring", "--direct=1", "--fixedbufs", "--registerfiles",
        f"--bs={arena.chunk}", f"--iodepth={depth}", "--time_based", f"--runtime={seconds}",
        f"--offset={DATA_OFFSET}", f"--size={extents * arena.chunk}",
        # Keep the file as it is: fio would otherwise replace it by a new one.
        "--fallocate=none", "--allow_file_create=0", "--overwrite=1",
        f"--mem=mmapshared:/proc/{os.getpid()}/fd/{arena.fd}", "--output-format=json",
    ]  # fmt: skip
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    # Notes of fio's may precede the JSON.
    job = json.loads(found.stdout[found.stdout.index("{") :])["jobs"][0]
    side = job["write" if write else "read"]
    taken = side["runtime"] / 1000
    return Run(taken, side["io_bytes"] / taken, (job["usr_cpu"] + job["sys_cpu"]) / 100 * taken)


async def measure(path: str, chunk: int, args: argparse.Namespace) -> list[Result]:
    """Both directions at one chunk size. Raises SpillPathError."""
    depth, seconds = args.depth, args.seconds
    results: list[Result] = []
    with SpillSet(
        [SpillFile.open(path, args.size, chunk)], chunk=chunk, entries=args.entries, piece=args.piece
    ) as spill:
        if spill.total < depth:
            raise SpillPathError(
                path, f"{spill.total} chunks fit, and {depth} are to be under way", "enlarge it"
            )
        arena = BenchArena(depth, chunk)
        async with trio.open_nursery() as nursery:
            await nursery.start(spill.run)
            spill.add_arena(arena)
            extents = [spill.take() for _ in range(spill.total)]
            for write in (True, False):
                # Before the reads because fio wrote what our checksums would refuse.
                await ours(spill, arena, extents, depth, True, 0)
                pairs: list[tuple[Run, Run]] = []
                for number in range(args.rounds):
                    by_fio = None
                    if number % 2:
                        by_fio = await trio.to_thread.run_sync(
                            fio, path, arena, len(extents), depth, write, seconds
                        )
                    mine = await ours(spill, arena, extents, depth, write, seconds)
                    if by_fio is None:
                        by_fio = await trio.to_thread.run_sync(
                            fio, path, arena, len(extents), depth, write, seconds
                        )
                    pairs.append((mine, by_fio))
                results.append(summary("write" if write else "read", chunk, depth, pairs))
            nursery.cancel_scope.cancel()
    arena.close()
    return results


def summary(direction: str, chunk: int, depth: int, pairs: Sequence[tuple[Run, Run]]) -> Result:
    """The medians of a direction's pairs."""
    ratios = tuple(mine.rate / other.rate for mine, other in pairs)
    mine, other = zip(*pairs, strict=True)

    def load(runs: Sequence[Run]) -> float:
        return statistics.median(run.cpu / run.seconds / (run.rate / 1e9) for run in runs)

    return Result(
        direction=direction,
        chunk=chunk,
        depth=depth,
        ours=statistics.median(run.rate for run in mine),
        fio=statistics.median(run.rate for run in other),
        ratio=statistics.median(ratios),
        ratios=ratios,
        ours_cpu=load(mine),
        fio_cpu=load(other),
    )


def show(results: Sequence[Result]) -> None:
    print(
        "direction     chunk  depth   ours GB/s   fio GB/s   ratio (min-max)        cores per GB/s: ours  fio"
    )
    for r in results:
        spread = f"{r.ratio:.2f} ({min(r.ratios):.2f}-{max(r.ratios):.2f})"
        print(
            f"{r.direction:9} {r.chunk >> 20:5} MiB {r.depth:6} {r.ours / 1e9:11.2f} {r.fio / 1e9:10.2f}"
            f"   {spread:22} {r.ours_cpu:20.3f} {r.fio_cpu:5.3f}"
        )


def chunk_size(text: str) -> int:
    value = parse_size(text)
    if not MIN_CHUNK <= value <= MAX_CHUNK or value & (value - 1):
        raise argparse.ArgumentTypeError(f"{text}: a chunk is a power of two from 2MiB to 64MiB")
    return value


def arguments() -> argparse.Namespace:
    def size(text: str) -> int:
        try:
            return parse_size(text)
        except SizeError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parser = argparse.ArgumentParser(description="The NVMe tier's engine against fio, on the same file.")
    parser.add_argument("--path", required=True, help="file to use; it is created, and removed at the end")
    parser.add_argument("--size", type=size, default=parse_size("2GiB"), help="default 2GiB")
    parser.add_argument(
        "--chunk", type=chunk_size, action="append", help="repeatable; default 2, 8 and 16 MiB"
    )
    parser.add_argument("--depth", type=int, default=8, help="chunks under way; default 8")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each direction; default 3")
    parser.add_argument("--seconds", type=int, default=2, help="of each run; default 2")
    parser.add_argument("--entries", type=int, default=DEFAULT_ENTRIES, help="pieces with the kernel at most")
    parser.add_argument("--piece", type=size, default=DEFAULT_PIECE, help="at which requests are cut")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout in place of the table")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if shutil.which("fio") is None:
        print("fio is not installed: apt-get install fio", file=sys.stderr)
        return 1
    results: list[Result] = []
    try:
        for chunk in args.chunk or [2 << 20, 8 << 20, 16 << 20]:
            results += trio.run(measure, args.path, chunk, args)
    except subprocess.CalledProcessError as error:
        print(error, error.stderr, file=sys.stderr)
        return 1
    except (SpillPathError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"path": args.path, "size": args.size, "results": [asdict(r) for r in results]}))
    else:
        show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
