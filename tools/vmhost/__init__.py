# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's side of tools/vm.

kernel fetches and unpacks a kernel, bzimage takes it out of its wrapping, module builds what is to be
loaded into it, initramfs packs what it starts with, machine starts QEMU around it, watch follows what
comes out, __main__ is the command.
init.sh and guest.sh are what runs inside.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout."""
BUILD = ROOT / "build" / "vm"
"""All that is kept between runs, and each run's own directory."""


class VmError(Exception):
    """tools/vm itself could not do its work; the message says what to do about it."""
