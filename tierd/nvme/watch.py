# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching for a device that has stopped to answer.

What was handed to a device cannot be called back. But a write's bytes are still in RAM: once the
path's deadline has passed without any answer, they are written to another path, if there is one, and
the extent is out of use until the device is done with it. A read can only be waited for: the kernel
answers it with an error when it gives the device up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from .path import SpillPath

__all__ = ["watch"]

_log = logging.getLogger(__name__)

_LOOKS = 4
"""In the time of a deadline."""


async def watch(path: SpillPath, others_have_room: Callable[[SpillPath], bool]) -> None:
    """Marks the path as stalled, and as active again, until cancelled."""
    deadline = path.options.deadline
    answers = -1
    silent_since = trio.current_time()
    while True:
        await trio.sleep(deadline / _LOOKS)
        now = trio.current_time()
        answered = path.ring.statistics().completed
        if answered != answers or not path.under_way:
            answers, silent_since = answered, now
        stalled = now - silent_since >= deadline
        if stalled is not path.health.stalled:
            path.set_stalled(stalled)
            if stalled:
                _log.error(
                    "%s has not answered for %g s: it gets no chunks until it does", path.name, deadline
                )
            else:
                _log.warning("%s answers again", path.name)
        if stalled and others_have_room(path):
            freed = path.ring.abandon_writes(now)
            if freed:
                _log.warning("%s: %d chunks are written elsewhere", path.name, freed)
