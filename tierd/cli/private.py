# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon for one command: started, waited for, ended, and nothing left of it.

Two pipes tie it to us. The *ready* pipe carries one JSON object from the daemon: {} when it serves,
or {"error", "status"}. The *life* pipe carries nothing: its other end closes when we end, however we
end, and with it the daemon ends.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CommandError, UsageError
from .signals import HeldSignals

__all__ = ["PrivateDaemon", "report_failed", "report_ready", "start_daemon"]

_MAX_SOCKET_PATH = 107
"""Bytes, see unix(7)."""

_PATIENCE = 30.0
"""Seconds for the daemon to end once asked: it unmounts, closes rings and removes spill files."""


@dataclass(slots=True)
class PrivateDaemon:
    """A running daemon of ours. `life` is our end of its life pipe."""

    pid: int
    socket: Path
    directory: Path
    life: int

    def stop(self) -> None:
        """End it and wait until it is gone; SIGKILL if it does not go. May be repeated.

        Within hold_signals(): it waits for SIGCHLD.
        """
        if self.life == -1:
            return
        os.close(self.life)
        self.life = -1
        while not os.waitpid(self.pid, os.WNOHANG)[0]:
            if signal.sigtimedwait({signal.SIGCHLD}, _PATIENCE) is None:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
        shutil.rmtree(self.directory, ignore_errors=True)


def start_daemon(flags: Sequence[str], environ: Mapping[str, str], held: HeldSignals) -> PrivateDaemon:
    """Start `greenboost daemon FLAGS` with a socket of its own; it serves when this returns.

    Raises UsageError or CommandError with the daemon's own words, and signals.Interrupted; nothing
    of it is left then.
    """
    socket = _socket_path()
    directory = socket.parent
    daemon_life, life = os.pipe()
    ready, daemon_ready = os.pipe()
    try:
        daemon = PrivateDaemon(
            _spawn(flags, environ, held, socket, daemon_life, daemon_ready), socket, directory, life
        )
    except BaseException:
        os.close(life)
        os.close(ready)
        raise
    finally:
        os.close(daemon_life)
        os.close(daemon_ready)
    try:
        with open(ready, "rb") as pipe, held.let_in():
            said = pipe.read()
        if not said:
            raise CommandError("the private daemon ended before it was ready; see what it said above")
        answer = json.loads(said)
        if "error" in answer:
            raise (UsageError if answer["status"] == UsageError.status else CommandError)(answer["error"])
    except BaseException:
        daemon.stop()
        raise
    return daemon


def _socket_path() -> Path:
    """A path nobody has, in a directory that nobody has either.

    The daemon makes the directory (mode 0700) and removes it, so that it also goes when we are killed.
    """
    name = Path(f"greenboost-{secrets.token_hex(8)}", "tierd.sock")
    path = tempfile.gettempdir() / name
    # TMPDIR may be deeper than the address of a socket is long.
    return path if len(os.fsencode(path)) <= _MAX_SOCKET_PATH else "/tmp" / name


def report_ready(fd: int) -> None:
    """The daemon's side of the ready pipe: it serves."""
    _report(fd, {})


def report_failed(fd: int, error: CommandError) -> None:
    """The daemon's side of the ready pipe: it could not start."""
    _report(fd, {"error": str(error), "status": error.status})


def _report(fd: int, answer: Mapping[str, object]) -> None:
    with open(fd, "w") as pipe:
        json.dump(answer, pipe)


def _spawn(
    flags: Sequence[str],
    environ: Mapping[str, str],
    held: HeldSignals,
    socket: Path,
    life: int,
    ready: int,
) -> int:
    # A configuration file describes the machine's daemon, whose spill files we must not take.
    arguments = [sys.executable, "-m", "tierd.cli", "daemon", "--config", os.devnull, "--socket", str(socket)]
    arguments += ["--life-fd", str(life), "--ready-fd", str(ready), *flags]
    # The package may be found through the current directory, which `-m` would search for the daemon's too.
    package = str(Path(__file__).resolve().parents[2])
    search = [package, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {**environ, "PYTHONPATH": os.pathsep.join(search), "PYTHONSAFEPATH": "1"}
    # Not for it: within another `greenboost run` the shim, within a service our readiness.
    for name in ("LD_PRELOAD", "NOTIFY_SOCKET"):
        variables.pop(name, None)
    for fd in (life, ready):
        os.set_inheritable(fd, True)
    return os.posix_spawn(
        sys.executable,
        arguments,
        variables,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            # What it has to say is not part of the command's output.
            (os.POSIX_SPAWN_DUP2, 2, 1),
        ],
        # Its own session: a Ctrl-C in the terminal is for the command, which may want to end in peace.
        setsid=True,
        setsigmask=held.before,
    )
