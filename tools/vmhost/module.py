# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules, built for a kernel that tools/vm knows, outside of their directories.

usage: python -m vmhost.module SERIES DIRECTORY...      for example 6.12 kmod

A module is built in build/vm/modules, in a directory that is named after all that it depends on, and
kept there. Any warning is an error.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import BUILD, VmError, kernel, status_of

MODULES = BUILD / "modules"

# What a build leaves: of no use to another one.
MADE = shutil.ignore_patterns("*.o", "*.ko", "*.mod", "*.mod.c", ".*", "modules.order", "Module.symvers")


def build(directory: Path, chosen: kernel.Kernel) -> Path:
    """The .ko file of the module in `directory`. Raises VmError.

    W=1, and with sparse where it is installed.
    """
    headers = kernel.headers(chosen)
    command = ["make", "-s", "-C", str(headers), "W=1", "KCFLAGS=-Werror"]
    if sparse := shutil.which("sparse"):
        command += ["C=2", f"CHECK={sparse}", "CF=-Wsparse-error"]
    MODULES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODULES, prefix=".build-") as scratch:
        tree = Path(scratch) / directory.name
        try:
            shutil.copytree(directory, tree, ignore=MADE)
        except OSError as error:
            raise VmError(f"no module in {directory}: {error}") from None
        kept = MODULES / f"{directory.name}-{chosen.version}-{_digest(tree, command)}"
        if not kept.exists():
            _make(command, tree)
            with open(MODULES / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not kept.exists():
                    tree.rename(kept)
    built = list(kept.glob("*.ko"))
    if len(built) != 1:
        raise VmError(f"{directory} makes {len(built)} modules, and not one")
    return built[0]


def _digest(tree: Path, command: list[str]) -> str:
    digest = hashlib.sha256("\0".join(command).encode())
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(tree)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _make(command: list[str], tree: Path) -> None:
    done = subprocess.run([*command, f"M={tree}", "modules"], capture_output=True, text=True)
    if done.returncode:
        raise VmError(f"{tree.name} could not be built:\n{done.stdout}{done.stderr}")


def main() -> None:
    series, *directories = sys.argv[1:]
    chosen = kernel.find(series)
    for directory in directories:
        print(build(Path(directory), chosen))


if __name__ == "__main__":
    sys.exit(status_of(main))
