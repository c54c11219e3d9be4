# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that looks for mistakes (KASAN, lockdep, kmemleak and more), for tools/vm.

usage: python -m vmhost.debugkernel      prints its version, for tools/vm --kernel VERSION

Made from Debian's source of the newest kernel here with the options in debug.config alone, which
takes 40 minutes on one processor and 3 GB. It is then among the other kernels in build/vm/kernels;
modules are built in the directory that it was built in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import BUILD, VmError, status_of
from .kernel import HEADERS, KERNELS, SERIES, run, unpack_source

FRAGMENT = Path(__file__).resolve().parent / "debug.config"
OBJECTS = BUILD / "debug"


def source() -> Path:
    """Debian's source of the kernel, unpacked."""
    tree = BUILD / "source" / f"linux-source-{[*SERIES][-1]}"
    if not tree.exists():
        tree.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".unpack-") as scratch:
            unpack_source(Path(scratch)).rename(tree)
    return tree


def _make(tree: Path, *arguments: str) -> None:
    command = ["make", "-s", "-C", str(tree), f"O={OBJECTS}", f"-j{os.cpu_count()}", *arguments]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise VmError(
            f"'{' '.join(command)}' failed, see above; it needs gcc, make, bc, flex, bison, libelf-dev"
        )


def _check_configuration() -> None:
    """What was asked for and could not be had, for want of something else, would be missed silently."""
    got = (OBJECTS / ".config").read_text().splitlines()
    wanted = [line for line in FRAGMENT.read_text().splitlines() if line.startswith("CONFIG_")]
    if missing := [line for line in wanted if line not in got]:
        raise VmError(f"{FRAGMENT} asks for what this kernel does not take: {', '.join(missing)}")


def build() -> str:
    """The kernel's version. What was built before is built on. Raises VmError."""
    tree = source()
    OBJECTS.mkdir(parents=True, exist_ok=True)
    _make(tree, f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig")
    _check_configuration()
    _make(tree, "bzImage", "modules")
    version = (OBJECTS / "include" / "config" / "kernel.release").read_text().strip()
    with tempfile.TemporaryDirectory(dir=KERNELS, prefix=".install-") as scratch:
        made = Path(scratch) / "tree"
        _make(tree, f"INSTALL_MOD_PATH={made}", "modules_install")
        (made / "boot").mkdir()
        shutil.copy(OBJECTS / "arch" / "x86" / "boot" / "bzImage", made / "boot" / f"vmlinuz-{version}")
        run("strip", "-g", "-o", str(made / "vmlinux"), str(OBJECTS / "vmlinux"))
        shutil.rmtree(KERNELS / version, ignore_errors=True)
        made.rename(KERNELS / version)
    headers = HEADERS / version / "usr" / "src" / f"linux-headers-{version}"
    headers.parent.mkdir(parents=True, exist_ok=True)
    headers.unlink(missing_ok=True)
    headers.symlink_to(OBJECTS)
    return version


def main() -> None:
    print(build())


if __name__ == "__main__":
    sys.exit(status_of(main))
