# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the user's command as if greenboost were not in between: its signals, its exit status."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

from .errors import CommandError
from .signals import FORWARDED, HeldSignals

__all__ = ["CommandNotRunError", "run_application"]

_SI_KERNEL = 0x80  # siginfo_t.si_code of a signal that no process sent


class CommandNotRunError(CommandError):
    """The command could not be started; the exit status is the one that shells give for it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def run_application(command: Sequence[str], environ: Mapping[str, str], held: HeldSignals) -> int:
    """Run `command` to its end; its exit status, 128 + n for signal n. Raises CommandNotRunError."""
    try:
        pid = os.posix_spawnp(
            command[0],
            list(command),
            environ,
            setsigmask=held.before,
            # Python ignores these, and ignoring is inherited.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    except FileNotFoundError:
        raise CommandNotRunError(f"run: {command[0]}: no such command", 127) from None
    except OSError as error:
        raise CommandNotRunError(f"run: {command[0]}: {(error.strerror or '').lower()}", 126) from None
    while True:
        caught = signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD})
        if caught.si_signo == signal.SIGCHLD:
            # Also for other children, and one signal may stand for several: ask.
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        elif caught.si_code != _SI_KERNEL:
            # A terminal's Ctrl-C reaches the whole foreground group, the command too: not twice.
            os.kill(pid, caught.si_signo)
