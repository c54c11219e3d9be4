# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's checkpatch.pl, which Debian has only in the kernel's source.

usage: python -m vmhost.checkpatch      prints where it is
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from . import BUILD, VmError
from .kernel import SERIES, Apt, run

_NEEDED = ("checkpatch.pl", "const_structs.checkpatch", "spelling.txt")


def script() -> Path:
    """Fetches 150 MB for it, of which 1 MB is kept, if it is not there yet. Raises VmError."""
    series, suite = list(SERIES.items())[-1]
    package = f"linux-source-{series}"
    home = BUILD / "checkpatch" / series
    if not home.exists():
        print(f"vm: fetching checkpatch.pl in {package} from {suite} (150 MB)", file=sys.stderr)
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".unpack-") as name:
            scratch = Path(name)
            run("dpkg-deb", "-x", str(Apt(suite).download(package, scratch)), name)
            archive = scratch / "usr" / "src" / f"{package}.tar.xz"
            members = [f"{package}/scripts/{needed}" for needed in _NEEDED]
            # With --occurrence it stops reading after the last of them.
            run("tar", "-xf", str(archive), "-C", name, "--occurrence", *members)
            shutil.rmtree(home, ignore_errors=True)
            (scratch / package / "scripts").rename(home)
    return home / _NEEDED[0]


def main() -> int:
    try:
        print(script())
    except VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
