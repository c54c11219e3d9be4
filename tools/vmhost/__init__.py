# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's side of tools/vm.

kernel fetches and unpacks a kernel, bzimage takes it out of its wrapping, module builds what is to be
loaded into it, initramfs packs what it starts with, machine starts QEMU around it, watch follows what
comes out, __main__ is the command.
init.sh and guest.sh are what runs inside.
"""

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout."""
BUILD = ROOT / "build" / "vm"
"""All that is kept between runs, and each run's own directory."""


class VmError(Exception):
    """tools/vm itself could not do its work; the message says what to do about it."""


def status_of(work: Callable[[], None]) -> int:
    """The exit status of a command that does `work`; a VmError is told on standard error."""
    try:
        work()
    except VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    return 0
