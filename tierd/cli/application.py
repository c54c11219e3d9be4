# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the user's command as if greenboost were not in between: its signals, its exit status."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from .errors import CommandError
from .signals import FORWARDED, HeldSignals

__all__ = ["CommandNotRunError", "run_application"]

_SI_KERNEL = 0x80  # siginfo_t.si_code of a signal that no process sent
_PR_SET_PDEATHSIG = 1  # prctl(2)

_libc = ctypes.CDLL(None)


class CommandNotRunError(CommandError):
    """The command could not be started; the exit status is the one that shells give for it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def run_application(command: Sequence[str], environ: Mapping[str, str], held: HeldSignals) -> int:
    """Run `command` to its end; its exit status, 128 + n for signal n. Raises CommandNotRunError.

    When this process is killed, so is the command: with SIGKILL, which it could not be passed on.
    """
    parent = os.getpid()

    def before_exec() -> None:
        # Whoever kills us with SIGKILL (a time limit, as a rule) means the command, and its memory goes
        # with a private daemon anyway: left alone it would hold the GPU until it fails.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held.before)

    try:
        # Not posix_spawn(), which has no such step in between. There are no other threads here that
        # could hold a lock at the fork. What Python ignores is set back to the default by Popen.
        child = subprocess.Popen(command, env=environ, close_fds=False, preexec_fn=before_exec)
    except FileNotFoundError:
        raise CommandNotRunError(f"run: {command[0]}: no such command", 127) from None
    except OSError as error:
        raise CommandNotRunError(f"run: {command[0]}: {(error.strerror or '').lower()}", 126) from None
    while True:
        caught = signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD})
        if caught.si_signo == signal.SIGCHLD:
            # Also for other children, and one signal may stand for several: ask.
            code = child.poll()
            if code is not None:
                return code if code >= 0 else 128 - code
        elif caught.si_code != _SI_KERNEL:
            # A terminal's Ctrl-C reaches the whole foreground group, the command too: not twice.
            child.send_signal(caught.si_signo)
