# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's checkpatch.pl, which Debian has only in the kernel's source.

usage: python -m vmhost.checkpatch      prints where it is
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from . import BUILD, status_of
from .kernel import SERIES, unpack_source

_NEEDED = ("checkpatch.pl", "const_structs.checkpatch", "spelling.txt")


def script() -> Path:
    """Fetches 150 MB for it, of which 1 MB is kept, if it is not there yet. Raises VmError."""
    home = BUILD / "checkpatch" / [*SERIES][-1]
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".unpack-") as scratch:
            tree = unpack_source(Path(scratch), *(f"scripts/{needed}" for needed in _NEEDED))
            (tree / "scripts").rename(home)
    return home / _NEEDED[0]


def main() -> None:
    print(script())


if __name__ == "__main__":
    sys.exit(status_of(main))
