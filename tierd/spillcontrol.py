# SPDX-License-Identifier: GPL-2.0-or-later
"""Spill paths that come and go while the daemon runs, as `greenboost spill` asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from .model import POLLS, SpillOptions
from .nvme.errors import ExtentError, NoSpace, SpillPathError
from .nvme.path import SpillPath
from .nvme.spillfile import SpillFile
from .policy import Refused
from .server import ControlError
from .tiers import Tiers
from .wire import Request

__all__ = ["SpillControl"]


class SpillControl:
    """Adds, drains and removes the spill paths of `tiers`. Raises ControlError."""

    def __init__(self, tiers: Tiers, *, ephemeral: bool, changed: Callable[[], None]) -> None:
        """`changed` is told when there is one more, before anything can be stored there, or one less, and
        when one begins or ceases to be emptied."""
        self._tiers = tiers
        self._changed = changed
        self._ephemeral = ephemeral

    async def add(self, request: Request) -> None:
        """See server.Control."""
        name, size = request.text("path"), request.uint("size")
        if request.text("poll") not in POLLS:
            raise ControlError("EINVAL", f"poll: {request.text('poll')!r} is none of {', '.join(POLLS)}")
        options = SpillOptions(
            weight=request.uint("weight") / 1000,
            encrypt=bool(request.uint("encrypt")),
            daily_writes=request.uint("daily_writes") or None,
            deadline=request.uint("deadline") / 1000,
            poll=POLLS[request.text("poll")],
        )
        known = self._tiers.store.find(name)
        if known is not None:
            self._restore(known, options)
            return
        open_file = partial(
            SpillFile.open,
            name,
            size or None,
            self._tiers.chunk,
            ephemeral=self._ephemeral,
            force=bool(request.uint("force")),
            options=options,
        )
        try:
            # In a thread, for a file system may take its time to allocate. Not abandoned: the file is ours.
            file = await trio.to_thread.run_sync(open_file)
            await self._tiers.store.add(file)
            self._changed()
        except SpillPathError as error:
            raise ControlError("EINVAL", str(error)) from error
        except (OSError, NoSpace) as error:
            reason = getattr(error, "strerror", None) or error
            raise ControlError("EIO", f"spill path {name}: {reason}") from error

    def _restore(self, path: SpillPath, options: SpillOptions) -> None:
        if not path.empties:
            raise ControlError("EEXIST", f"{path.name} is a spill path already")
        if options not in (SpillOptions(), path.options):
            raise ControlError(
                "EEXIST",
                f"{path.name} is being drained and has other settings; add it without any to call that off, "
                "or remove it first",
            )
        if not self._tiers.store.restore(path):
            raise ControlError("EIO", f"{path.name} has failed; remove it, and see the kernel log")
        self._changed()

    def drain(self, name: str) -> SpillPath:
        """See server.Control; the path."""
        path = self._tiers.store.find(name)
        if path is None:
            paths = ", ".join(path.path for path in self._tiers.store.snapshot()) or "none"
            raise ControlError("ENOENT", f"{name} is not a spill path; there are: {paths}")
        try:
            self._tiers.withdraw(path)
        except Refused as refused:
            raise ControlError(
                refused.name,
                f"{name} cannot be spared: {refused}; add another spill path first, or end an application",
            ) from refused
        self._changed()
        return path

    async def remove(self, name: str) -> None:
        """See server.Control."""
        path = self.drain(name)
        try:
            await self._tiers.store.remove(path)
        except ExtentError as error:
            raise ControlError("ECANCELED", str(error)) from error
        self._changed()
