# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals held back, so that none ends greenboost between making something and taking it away again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["FORWARDED", "HeldSignals", "Interrupted", "hold_signals"]

FORWARDED = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
"""What `run` passes on to the command."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interrupted(BaseException):
    """A signal that asks for the end came during HeldSignals.let_in()."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class HeldSignals:
    """FORWARDED and SIGCHLD are blocked while this lives. `before` is the mask for children."""

    def __init__(self, before: set[int | signal.Signals]) -> None:
        self.before = before

    @contextmanager
    def let_in(self) -> Iterator[None]:
        """Around a wait that may be long: raise Interrupted for a signal that asks for the end."""
        # What is ignored, by nohup(1) for example, stays so.
        ending = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        handlers = {number: signal.signal(number, _interrupt) for number in ending}
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def hold_signals() -> Iterator[HeldSignals]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    try:
        yield HeldSignals(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)
