# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost bench spill: the NVMe tier, through a daemon, beside fio on the same files."""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..config import MIN_RAM_CHUNKS
from ..model import format_size
from ..wire import MAX_UNDER_WAY
from .bench_files import unnamed_file
from .bench_fio import FioJob, fio_version
from .bench_pairs import (
    DIRECTIONS,
    Latency,
    Target,
    Throughput,
    measure_latency,
    measure_throughput,
    write_once,
)
from .bench_plot import check_plot, draw
from .bench_report import (
    LATENCY_HEAD,
    THROUGHPUT_HEAD,
    latency_json,
    latency_line,
    throughput_json,
    throughput_line,
)
from .bench_session import BenchSession
from .control import status_of
from .errors import CommandError, UsageError
from .parsers import Commands, add_command, as_chunk, as_count, as_size
from .private import PrivateDaemon, start_daemon
from .signals import HeldSignals, Interrupted, hold_signals

__all__ = ["add_to"]

_CHUNKS = tuple(n << 20 for n in (2, 4, 8, 16, 32))


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "spill",
        _spill,
        help="measure how fast chunks go to spill paths and come back, beside fio on the same files",
        example="greenboost bench spill --path /mnt/nvme/bench --size 4GiB --plot spill.svg",
    )
    parser.add_argument(
        "--path",
        metavar="PATH[,PATH...]",
        action="append",
        required=True,
        help="a file that is made and removed again, a directory for one, or a spill path that exists; "
        "several, also by repeating this, are used together",
    )
    parser.add_argument(
        "--size", type=as_size, default=4 << 30, help="what is written and read of each path (default 4GiB)"
    )
    parser.add_argument(
        "--chunk",
        metavar="SIZE[,SIZE...]",
        type=_chunks,
        action="append",
        help="chunk sizes, powers of two from 2MiB to 64MiB (default 2MiB,4MiB,8MiB,16MiB,32MiB)",
    )
    parser.add_argument(
        "--depth",
        metavar="N",
        type=as_count,
        default=8,
        help="chunks under way at a time for each path (default 8)",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=as_count, default=5, help="how often the two are compared (default 5)"
    )
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=_seconds,
        default=0.0,
        help="go on with rounds until so long was measured in each direction",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures into FILE, .svg or .png")


def _chunks(text: str) -> list[int]:
    return [as_chunk(part) for part in text.split(",")]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


@dataclass(frozen=True, slots=True)
class _Path:
    """A spill path as the daemon and fio are to open it, and as it was asked for."""

    opened: str
    named: str
    size: int  #: bytes of it to use


@dataclass(slots=True)
class _Found:
    throughput: list[Throughput]
    latency: list[Latency]


def _spill(options: argparse.Namespace) -> int:
    names = [name for given in options.path for name in given.split(",") if name]
    chunks = sorted({size for given in options.chunk or [_CHUNKS] for size in given})
    if not names:
        raise UsageError("--path: no path is given")
    lanes = options.depth * len(names)
    if lanes > MAX_UNDER_WAY:
        raise UsageError(f"--depth: {lanes} chunks under way are more than {MAX_UNDER_WAY}; give less")
    if options.size < 2 * options.depth * chunks[-1]:
        raise UsageError(
            f"--size: {format_size(options.size)} is too little for {options.depth} chunks of "
            f"{format_size(chunks[-1])} under way; give {format_size(2 * options.depth * chunks[-1])} or more"
        )
    fio = fio_version()
    if options.plot is not None:
        check_plot(options.plot)
    found = _Found([], [])
    with hold_signals() as held, _paths(names, options.size) as paths:
        try:
            for chunk in chunks:
                _measure_chunk(paths, chunk, options, held, found)
        except Interrupted as interrupted:
            return 128 + interrupted.number
    if options.json:
        print(json.dumps(_as_json(paths, options, fio, found), indent=2))
    else:
        print("\n".join(["", LATENCY_HEAD, *map(latency_line, found.latency)]))
    if options.plot is not None:
        where = ", ".join(names)
        draw(options.plot, found.throughput, title=f"{where}: {options.depth} chunks under way")
    return 0


def _as_json(paths: Sequence[_Path], options: argparse.Namespace, fio: str, found: _Found) -> object:
    return {
        "paths": [{"path": path.named, "size_bytes": path.size} for path in paths],
        "depth": options.depth,
        "fio_version": fio,
        "throughput": [throughput_json(one) for one in found.throughput],
        "latency": [latency_json(one) for one in found.latency],
    }


@contextmanager
def _paths(names: Sequence[str], size: int) -> Iterator[list[_Path]]:
    """What to open for each; what is made here has no name."""
    from ..nvme.spillpath import DATA_OFFSET  # needs the io_uring extension, which --help does without

    size += DATA_OFFSET
    with ExitStack() as undo:
        paths = []
        for name in names:
            directory = _directory_for(name)
            if directory is None:
                paths.append(_Path(name, name, _usable(name, size)))
            else:
                fd = _unnamed_file(name, directory)
                undo.callback(os.close, fd)
                paths.append(_Path(f"/proc/{os.getpid()}/fd/{fd}", name, size))
        yield paths


def _directory_for(name: str) -> str | None:
    """Where to make a file; None to leave the path, and what is wrong with it, to the daemon."""
    if os.path.isdir(name):
        return name
    parent = os.path.dirname(name) or "."
    return parent if not os.path.lexists(name) and os.path.isdir(parent) else None


def _usable(name: str, size: int) -> int:
    """A spill file that exists is not to grow by being measured."""
    try:
        found = os.stat(name)
    except OSError:
        return size
    return min(size, found.st_size) if stat.S_ISREG(found.st_mode) and found.st_size else size


def _unnamed_file(name: str, directory: str) -> int:
    try:
        return unnamed_file(directory)
    except OSError as error:
        raise CommandError(
            f"--path: {name}: no file can be made there ({error.strerror}); name another path"
        ) from None


def _measure_chunk(
    paths: Sequence[_Path], chunk: int, options: argparse.Namespace, held: HeldSignals, found: _Found
) -> None:
    """All there is to measure at one chunk size. Raises CommandError and Interrupted."""
    daemon = _start(paths, chunk, options.depth, held)
    try:
        with held.let_in(), _target(daemon, paths, chunk, options) as target:
            write_once(target)
            for direction in DIRECTIONS:
                found.throughput.append(measure_throughput(target, direction))
                if not options.json:
                    if len(found.throughput) == 1:
                        print(THROUGHPUT_HEAD)
                    print(throughput_line(found.throughput[-1]), flush=True)
            found.latency.append(measure_latency(target))
    finally:
        daemon.stop()


def _start(paths: Sequence[_Path], chunk: int, depth: int, held: HeldSignals) -> PrivateDaemon:
    arena = depth * chunk
    arenas = max(len(paths), -(-MIN_RAM_CHUNKS // depth))
    flags = [f"--chunk={chunk}", f"--arena={arena}", f"--ram={arena * arenas}"]
    flags += [f"--spill={path.opened}:{path.size}" for path in paths]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GREENBOOST_")}
    try:
        return start_daemon(flags, environ, held)
    except CommandError as error:
        text = str(error).replace("--spill:", "--path:")
        for path in paths:
            text = text.replace(path.opened, path.named)
        raise type(error)(text) from None


@contextmanager
def _target(
    daemon: PrivateDaemon, paths: Sequence[_Path], chunk: int, options: argparse.Namespace
) -> Iterator[Target]:
    from ..nvme.spillpath import DATA_OFFSET

    room = [spill["total_bytes"] // chunk for spill in status_of(daemon.socket)["spill"]]  # type: ignore[attr-defined]
    for path, chunks in zip(paths, room, strict=True):
        if chunks < 2 * options.depth:
            raise UsageError(
                f"--path: {path.named} holds {chunks} chunks of {format_size(chunk)}, too few for "
                f"{options.depth} under way; enlarge it, or give a smaller --chunk or --depth"
            )
    with BenchSession(daemon.socket, chunks=sum(room), arenas=len(paths)) as session:
        jobs = [
            FioJob(path.opened, f"/proc/{os.getpid()}/fd/{arena.fd}", chunks)
            for path, arena, chunks in zip(paths, session.arenas, room, strict=True)
        ]
        yield Target(
            session=session,
            daemon=daemon.pid,
            jobs=jobs,
            offset=DATA_OFFSET,
            depth=options.depth,
            rounds=options.rounds,
            seconds=options.seconds,
        )
