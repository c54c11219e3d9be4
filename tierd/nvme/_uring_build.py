# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the extension module tierd.nvme._uring from the C files here, through cffi in API mode.

setuptools calls `ffibuilder` (``cffi_modules`` in pyproject.toml). Run as a script it builds the
module in place, which is all that development needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI

_ROOT = Path(__file__).resolve().parents[2]
_HERE = Path("tierd", "nvme")
_SOURCES = ("engine.c", "engine_setup.c", "memory.c")
_HEADERS = ("engine.h", "memory.h")


def _declarations() -> str:
    """What the headers declare, so that it is written down once."""
    headers = [(_ROOT / _HERE / name).read_text(encoding="utf-8") for name in _HEADERS]
    return "".join(h.split("/* cffi: begin */")[1].split("/* cffi: end */")[0] for h in headers)


def _static_liburing() -> str | None:
    """The path of liburing's archive, or None where only the shared library is installed.

    Linked in, the module runs on machines without liburing, and on those with an older one.
    """
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    asked = subprocess.run(
        [*compiler, "-print-file-name=liburing.a"], capture_output=True, text=True, check=True
    )
    answer = asked.stdout.strip()
    return answer if os.path.isabs(answer) else None


def _builder(here: Path) -> FFI:
    """The builder with its C files in `here`, which setuptools wants relative to pyproject.toml."""
    archive = _static_liburing()
    builder = FFI()
    builder.cdef(_declarations())
    builder.set_source(
        "tierd.nvme._uring",
        "".join(f'#include "{name}"\n' for name in _HEADERS),
        sources=[str(here / name) for name in _SOURCES],
        include_dirs=[str(here)],
        depends=[str(here / name) for name in (*_HEADERS, "engine_internal.h")],
        extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
        extra_objects=[archive] if archive else [],
        libraries=[] if archive else ["uring"],
    )
    return builder


ffibuilder = _builder(_HERE)


def main() -> None:
    """Builds beside this file; what the compiler leaves goes to a temporary directory.

    The name is the one that setuptools gives it: cffi compiles for the limited API anyway, and two
    modules under different names would shadow each other.
    """
    target = _HERE / "_uring.abi3.so"
    with tempfile.TemporaryDirectory() as scratch:
        built = _builder(_ROOT / _HERE).compile(tmpdir=scratch)
        fresh = _ROOT / target.with_suffix(".new")
        shutil.copy2(built, fresh)
        fresh.replace(_ROOT / target)  # never half a module under a process that imports it
    print(target)


if __name__ == "__main__":
    main()
