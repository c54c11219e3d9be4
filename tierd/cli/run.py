# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost run -- COMMAND: the command with its GPU memory in tiers."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config, pins, wire
from ..model import SizeError, format_size, parse_size
from . import tracefile
from .application import run_application
from .control import daemon_socket, status_of
from .errors import CommandError, UsageError
from .parsers import TIER_FLAGS, Commands, add_command, add_paging, add_socket, add_tiers
from .paths import find_driver, find_nvml, find_shim
from .private import start_daemon
from .results import newest_session, results, table
from .signals import HeldSignals, Interrupted, hold_signals

__all__ = ["add_to"]

_MIN_SLOTS = 4
"""VRAM slots without which nothing moves: what a kernel reads and writes, and one each way in and out."""

_OFF = "greenboost: paging is off: the command had the driver's memory alone"


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        _run,
        help="run a command with its GPU memory in tiers",
        example="greenboost run --vram 8GiB --ram 50% --spill /mnt/nvme/spill:64GiB -- python generate.py",
    )
    parser.add_argument(
        "--vram", metavar="SIZE", help="VRAM the command may fill: 8GiB, or 80%% of the device's"
    )
    add_paging(parser)
    parser.add_argument(
        "--pin",
        metavar="RULE",
        action="append",
        help="what stays in VRAM: size<=64MiB, size=1GiB..2GiB (of an allocation), 0x7f0000000-0x7f8000000 "
        "(addresses); may be repeated",
    )
    add_tiers(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the final figures to FILE as well")
    parser.add_argument(
        "--record", metavar="FILE", type=Path, help="record launches and what they name, for tools/replay"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="write what happened when, for Perfetto or speedscope",
    )
    parser.add_argument("--driver", metavar="PATH", help="the CUDA driver (libcuda.so.1), if it is not found")
    add_socket(parser)
    # Like a subparser's: from the first word that is no option of ours on, all is the command's.
    parser.add_argument("argv", metavar="COMMAND", nargs=argparse.PARSER, help="the command, after --")


@dataclass(frozen=True, slots=True)
class _Daemon:
    socket: Path
    private: bool
    chunk: int  #: bytes
    paging: str  #: of this command


def _run(options: argparse.Namespace) -> int:
    if options.argv[0] == "--":
        del options.argv[0]
    if not options.argv:
        raise UsageError("run: no command is given; write it after --")
    _check_file("--json", options.json)
    _check_file("--record", options.record)
    _check_file("--trace", options.trace)
    _pins(options)  # said before anything is started
    shim = find_shim(os.environ)
    driver = find_driver(options.driver, os.environ, shim=shim)
    with hold_signals() as held:
        try:
            with _daemon(options, held) as daemon:
                return _run_with(daemon, options, _environment(daemon, options, driver, shim), held)
        except Interrupted as interrupted:
            return 128 + interrupted.number


def _run_with(
    daemon: _Daemon, options: argparse.Namespace, environ: Mapping[str, str], held: HeldSignals
) -> int:
    since = None if daemon.private else newest_session(status_of(daemon.socket))
    began, traced = time.monotonic(), tracefile.now()
    status = run_application(options.argv, environ, held)
    seconds = time.monotonic() - began
    figures: dict[str, Any] | None = None
    try:
        figures = results(daemon.socket, since=since, seconds=seconds)
    except CommandError as error:
        # The command ran, and its status is the caller's; there is just nothing to show.
        print(f"greenboost: no figures: {error}", file=sys.stderr)
    if options.trace is not None:
        # Who goes on running may go on tracing.
        over = figures is not None and not any(session["running"] for session in figures["sessions"])
        try:
            tracefile.end(options.trace, options.argv, traced, status, close=over)
        except OSError as error:
            print(f"greenboost: --trace {options.trace}: {(error.strerror or '').lower()}", file=sys.stderr)
    if figures is None:
        return status
    print(table(figures) if daemon.paging != "off" else _OFF, file=sys.stderr)
    if options.json is not None:
        whole = {
            "command": options.argv,
            "status": status,
            "seconds": round(seconds, 6),
            "private_daemon": daemon.private,
            "paging": daemon.paging,
            "pins": [str(pin) for pin in _pins(options)],
            **figures,
        }
        try:
            options.json.write_text(json.dumps(whole, indent=2) + "\n")
        except OSError as error:
            print(f"greenboost: --json {options.json}: {(error.strerror or '').lower()}", file=sys.stderr)
    return status


@contextmanager
def _daemon(options: argparse.Namespace, held: HeldSignals) -> Iterator[_Daemon]:
    """The daemon to use: the running one, or a private one if tiers are asked for or none is running."""
    flags = {name: getattr(options, name) for name in TIER_FLAGS}
    wants_own = any(value is not None for value in flags.values())
    if options.socket and wants_own:
        raise UsageError(
            "run: --socket names a running daemon, whose tiers are given; leave out one or the other"
        )
    if not wants_own:
        socket = daemon_socket(options.socket)
        try:
            wire.connect(socket).close()
        except wire.NoDaemonError:
            if options.socket:
                raise UsageError(f"--socket: no GreenBoost daemon listens at {socket}") from None
        except wire.RemoteError as error:
            raise CommandError(f"the daemon at {socket} refuses: {error}") from None
        else:
            status = status_of(socket)
            chunk, paging = status["chunk_bytes"], _settings({"paging": options.paging}).paging
            assert isinstance(chunk, int)
            if options.paging is None and not os.environ.get("GREENBOOST_PAGING"):
                paging = str(status["paging"])
            _check_paging(options, paging)
            _check_vram(options, chunk)
            _check_pins(options, chunk)
            yield _Daemon(socket, False, chunk, paging)
            return
    settings = _settings({"paging": options.paging, **flags})
    _check_paging(options, settings.paging)
    _check_vram(options, settings.chunk)
    _check_pins(options, settings.chunk)
    given = {name.replace("_", "-"): value for name, value in flags.items() if isinstance(value, str)}
    arguments = [f"--{name}={value}" for name, value in given.items()]
    arguments += [f"--spill={value}" for value in options.spill or ()]
    arguments.append(f"--paging={settings.paging}")
    daemon = start_daemon(arguments, os.environ, held)
    try:
        yield _Daemon(daemon.socket, True, settings.chunk, settings.paging)
    finally:
        daemon.stop()


def _settings(flags: Mapping[str, object]) -> config.Config:
    """What a private daemon would have. Raises UsageError."""
    try:
        return config.load(Path(os.devnull), os.environ, flags)
    except config.ConfigError as error:
        raise UsageError(str(error)) from None


def _pins(options: argparse.Namespace) -> tuple[pins.Pin, ...]:
    """The rules of the flags, else of the variable. Raises UsageError."""
    where, texts = "--pin", options.pin
    if texts is None:
        where, texts = "GREENBOOST_PIN", [os.environ.get("GREENBOOST_PIN", "")]
    try:
        return pins.parse_all(texts)
    except pins.PinError as error:
        raise UsageError(f"{where}: {error}") from None


def _check_pins(options: argparse.Namespace, chunk: int) -> None:
    """Raise UsageError for a rule that only allocations could meet that are larger than all of VRAM."""
    vram, _ = _vram(options)
    if vram is None or "%" in vram:
        return
    room = parse_size(vram) - _MIN_SLOTS * chunk
    for pin in _pins(options):
        if not pin.by_address and pin.low > room:
            raise UsageError(
                f"--pin: {pin}: allocations of {format_size(pin.low)} and more cannot stay in {vram} of "
                f"VRAM, of which {_MIN_SLOTS} chunks of {format_size(chunk)} must be free for the rest"
            )


def _check_paging(options: argparse.Namespace, paging: str) -> None:
    """Raise UsageError for flags that would do nothing."""
    if paging == "off":
        for flag in ("vram", "record", "trace"):
            if getattr(options, flag) is not None:
                raise UsageError(
                    f"--{flag}: with --paging off the driver alone has to do with memory; leave out one or "
                    "the other"
                )
    if paging != "auto" and options.pin:
        raise UsageError(
            f"--pin: with --paging {paging} nothing leaves VRAM that could stay; leave out one or the other"
        )
    if paging == "mapped" and options.spill:
        raise UsageError(
            "--spill: with --paging mapped memory is used in place, which NVMe cannot be; leave out one or "
            "the other"
        )


def _environment(daemon: _Daemon, options: argparse.Namespace, driver: Path, shim: Path) -> dict[str, str]:
    preload = [str(shim)]
    if nvml := find_nvml(shim, os.environ):
        preload.append(str(nvml[0]))
    environ = {
        **os.environ,
        "GREENBOOST_SOCKET": str(daemon.socket),
        "GREENBOOST_PAGING": daemon.paging,
        "GREENBOOST_CUDA_DRIVER": str(driver),
        # First of all: whoever else wraps the driver then wraps what we give.
        "LD_PRELOAD": " ".join(filter(None, (*preload, os.environ.get("LD_PRELOAD")))),
    }
    if nvml:
        environ["GREENBOOST_NVML"] = str(nvml[1])
    vram, _ = _vram(options)
    if vram is not None:
        # The shim knows percentages and bytes.
        environ["GREENBOOST_VRAM"] = vram.strip() if "%" in vram else str(parse_size(vram))
    if rules := _pins(options):
        environ["GREENBOOST_PIN"] = ",".join(map(str, rules))
    if options.record is not None:
        # The shim appends, as one process after another may be recorded.
        options.record.write_bytes(b"")
        environ["GREENBOOST_RECORD"] = str(options.record.absolute())
    if options.trace is not None:
        tracefile.begin(options.trace)
        environ["GREENBOOST_TRACE"] = str(options.trace.absolute())
    return environ


def _vram(options: argparse.Namespace) -> tuple[str | None, str]:
    """The VRAM asked for, and where."""
    if options.vram is not None:
        return options.vram, "--vram"
    return os.environ.get("GREENBOOST_VRAM") or None, "GREENBOOST_VRAM"


def _check_vram(options: argparse.Namespace, chunk: int) -> None:
    """Raise UsageError unless the VRAM holds _MIN_SLOTS chunks. The shim checks percentages."""
    vram, where = _vram(options)
    if vram is None:
        return
    try:
        # Of what whole a percentage is, only the shim knows; here it has to be one.
        size = parse_size(vram, whole=1 << 50)
    except SizeError as error:
        raise UsageError(f"{where}: {error}") from None
    if size < _MIN_SLOTS * chunk:
        raise UsageError(
            f"{where}: {vram} holds {size // chunk} chunks of {format_size(chunk)}, at least {_MIN_SLOTS} "
            f"are needed; give {format_size(_MIN_SLOTS * chunk)} or more, or a smaller --chunk"
        )


def _check_file(flag: str, file: Path | None) -> None:
    """Raise UsageError if the file could not be written: better now than after hours of work."""
    if file is None:
        return
    if file.is_dir():
        raise UsageError(f"{flag}: {file} is a directory; give a file")
    target = file if file.exists() else file.absolute().parent
    if not os.access(target, os.W_OK):
        reason = "cannot be written" if target.exists() else "does not exist"
        raise UsageError(f"{flag}: {target} {reason}; give a file that can be written")
