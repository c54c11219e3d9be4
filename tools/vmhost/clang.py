# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules, compiled with clang, for its warnings; what comes out is for no kernel.

usage: python -m vmhost.clang DIRECTORY...

Debian's headers are configured for gcc, with options that clang refuses. So this is done against the
source that debugkernel.py has fetched, configured for clang: with debug.config, and not built.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import BUILD, VmError, status_of
from .debugkernel import FRAGMENT, source
from .module import MADE

OBJECTS = BUILD / "clang"


def find() -> str:
    names = ("clang", *(f"clang-{number}" for number in range(25, 13, -1)))
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise VmError("clang is not installed")
    return found


def _make(*arguments: str) -> None:
    command = ["make", "-s", f"CC={find()}", "-j2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise VmError(f"'{' '.join(command)}' failed:\n{done.stdout}{done.stderr}")


def prepare() -> None:
    if not (OBJECTS / "prepared").exists():
        OBJECTS.mkdir(parents=True, exist_ok=True)
        tree = ["-C", str(source()), f"O={OBJECTS}"]
        _make(*tree, f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig")
        _make(*tree, "modules_prepare")
        (OBJECTS / "prepared").touch()


def main() -> None:
    prepare()
    for directory in sys.argv[1:]:
        with tempfile.TemporaryDirectory(dir=OBJECTS, prefix="module-") as scratch:
            copy = Path(scratch) / "module"
            shutil.copytree(directory, copy, ignore=MADE)
            # Symbols are not resolved: there is no kernel to resolve them with.
            options = ["W=1", "KCFLAGS=-Werror", "KBUILD_MODPOST_WARN=1"]
            _make("-C", str(OBJECTS), f"M={copy}", *options, "modules")


if __name__ == "__main__":
    sys.exit(status_of(main))
