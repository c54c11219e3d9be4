# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes out of the guest: the command's two streams, and the kernel's console."""

from __future__ import annotations

import re

# What the kernel says when something is wrong with it. "WARNING:" and "BUG:" begin most of its
# reports, those of lockdep, KASAN and KFENCE included.
_FAULT = re.compile(
    r"Kernel panic - not syncing"
    r"|\bBUG: "
    r"|\bWARNING: "
    r"|\bOops: "
    r"|\bUBSAN: "
    r"|general protection fault"
    r"|INFO: task .* blocked for more than"
    r"|rcu: INFO: .* detected .*stall"
    r"|kmemleak: [0-9]+ new suspected"
)

# Under emulation, a processor now and then meets the breakpoint that another one had put in the place of
# an instruction while it changed it, and has removed since. Linux patches itself a lot while it starts.
_EMULATOR = re.compile(r"\bOops: int3\b")
_STARTED = "vm: the guest is up"

_BEFORE, _AT_MOST = 40, 400
"""Lines."""


class Stream:
    """One of the command's streams, up to the mark that guest.sh puts behind it."""

    def __init__(self, mark: str) -> None:
        self._mark = re.compile(re.escape(mark.encode()) + rb" (\d+)\n")
        self._begin = mark[0].encode()
        self._longest = len(mark) + len(" 255\n")
        self._held = b""
        self.status: int | None = None  #: the command's, once the stream is complete

    def feed(self, data: bytes) -> bytes:
        """What of it is to be passed on now."""
        if self.status is not None:
            return b""  # from something the command left running
        self._held += data
        if found := self._mark.search(self._held):
            self.status = int(found[1])
            ready, self._held = self._held[: found.start()], b""
            return ready
        # What might be the mark's beginning waits for the rest.
        cut = self._held.find(self._begin, max(0, len(self._held) - self._longest))
        if cut < 0:
            cut = len(self._held)
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def rest(self) -> bytes:
        """What was held back, where no mark can come any more."""
        ready, self._held = self._held, b""
        return ready


class Console:
    """The kernel's log."""

    def __init__(self) -> None:
        self._text = bytearray()

    def feed(self, data: bytes) -> None:
        self._text += data

    def lines(self) -> list[str]:
        return self._text.decode(errors="replace").replace("\r", "").splitlines()

    def faults(self) -> list[str]:
        return [line for line in self.lines() if _FAULT.search(line)]

    def killed(self) -> list[str]:
        """What was said of each process that had to go for want of memory."""
        return [line for line in self.lines() if "Out of memory: Killed process" in line]

    def emulator_failed_at_start(self) -> bool:
        """Whether the emulator broke the kernel before anything of ours ran: no module, no command."""
        faults = self.faults()
        began = any(_STARTED in line for line in self.lines())
        return bool(faults and _EMULATOR.search(faults[0])) and not began

    def excerpt(self) -> list[str]:
        """What to show of it: some lines before the first fault and all after it, or else the end."""
        lines = self.lines()
        first = next((number for number, line in enumerate(lines) if _FAULT.search(line)), len(lines))
        start = max(0, first - _BEFORE)
        return lines[start : start + _AT_MOST]
