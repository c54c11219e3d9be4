# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives arenas back to the system when RAM is short, and lets T2 grow again when it is not."""

from __future__ import annotations

import logging

import trio

from .model import NO_PRESSURE, PressureLevel, PressureSnapshot, format_size
from .pressure import Source
from .tiers import Tiers
from .watermark import Governor, Spare, Wanted

__all__ = ["Relief"]

_log = logging.getLogger(__name__)

_SPACING = 0.01
"""Seconds between two looks at least: however many events a storm brings, they cost no more than this."""


class Relief:
    """Stands between a source of pressure and the tiers."""

    def __init__(self, tiers: Tiers, source: Source) -> None:
        self._tiers = tiers
        self._source = source
        self._governor = Governor()
        self._seen = NO_PRESSURE
        self._blind = False  # the last look failed

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                self._look()
            except OSError as error:  # no descriptor left, say: that is no reason to end
                if not self._blind:
                    _log.warning("cannot see whether RAM is short: %s", error)
                self._blind = True
            else:
                self._blind = False
            await self._source.wait()
            await trio.sleep(_SPACING)

    def _look(self) -> None:
        tiers = self._tiers
        self._source.report_t3(*tiers.spill_bytes)
        before, self._seen = self._seen, self._source.look()
        if self._seen.level is not before.level:
            self._say(before.level)
        now = trio.current_time()
        match self._governor.consider(now, self._seen, tiers.held_bytes, limited=tiers.limited):
            case Wanted(size, again):
                tiers.give_way(size, again=again)
            case Spare(size):
                tiers.grow(size)

    def _say(self, before: PressureLevel) -> None:
        now = self._seen
        if now.level is PressureLevel.CALM:
            _log.info("RAM is not short any more: %s available", format_size(now.available))
            return
        level = logging.WARNING if now.level > max(before, PressureLevel.LOW) else logging.INFO
        _log.log(
            level,
            "RAM is %s: %s available, %s wanted back, %s in arenas",
            "nearly gone" if now.level is PressureLevel.CRITICAL else "short",
            format_size(now.available),
            format_size(now.wanted),
            format_size(self._tiers.held_bytes),
        )

    def snapshot(self) -> PressureSnapshot:
        """How things were at the last look, and what was done so far."""
        return PressureSnapshot(
            source=self._source.name,
            level=self._seen.level,
            wanted=self._seen.wanted,
            available=self._seen.available,
            events=self._seen.events,
            returned=self._tiers.returned_bytes,
            withheld=self._tiers.withheld_bytes,
        )
