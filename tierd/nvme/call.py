# SPDX-License-Identifier: GPL-2.0-or-later
"""One transfer through a ring, as the task that asked for it and the kernel see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NoReturn

import outcome
import trio

__all__ = ["Abandoned", "Call"]


class Abandoned(TimeoutError):
    """Ring.abandon_writes() ended the call before the kernel was done; errno is ETIMEDOUT.

    A class of its own because a device may report ETIMEDOUT too, and then `late` is never called.
    """


@dataclass(slots=True, eq=False)
class Call:
    """A call of Ring.read() or Ring.write(), made by its task."""

    write: bool
    late: Callable[[], None] | None
    patient: bool = False  #: abandon_writes() leaves it alone
    meanwhile: Callable[[], Awaitable[None]] | None = None
    arrived: Callable[[int], None] | None = None  #: None too where nothing of it is to be reported
    started: float = field(default_factory=trio.current_time)  #: the call, and then its request
    task: trio.lowlevel.Task = field(default_factory=trio.lowlevel.current_task)
    number: int = -1  #: the request's in the ring; -1 while it waits for one
    parked: bool = False  #: the task waits to be told how it ended
    result: outcome.Outcome[int] | None = None  #: how it ended, where the task was not parked
    keeps: bool = False  #: the kernel has no hold of its own on the memory: it cannot be abandoned
    cancelled: Callable[[], NoReturn] | None = None  #: raises the task's trio.Cancelled
    abandoned: bool = False  #: the task does not wait for the kernel any more
    left: bool = False  #: the task has gone on since then
    done: bool = False  #: the kernel has let go of what was abandoned

    def end(self, result: outcome.Outcome[int]) -> None:
        """It is over: the task goes on with `result`."""
        if self.parked:
            self.parked = False
            trio.lowlevel.reschedule(self.task, result)
        else:
            self.result = result

    def gives_up(self, before: float) -> bool:
        """Whether abandon_writes(before) ends it."""
        return self.write and self.started < before and not self.patient
