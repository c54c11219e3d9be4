# SPDX-License-Identifier: GPL-2.0-or-later
"""The shim's C files that call no CUDA, as Python objects: compiled once, called through cffi."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import cffi

SHIM = Path(__file__).parents[2] / "shim"
PURE = ("alloc_map", "guess", "pins", "predict")
"""Those with a header that others use."""
PARTS = ("predict_log", "predict_plan")


def declarations(header: Path) -> str:
    """What cffi can read of a header: no preprocessor lines, no comments, sizes as numbers."""
    text = header.read_text()
    defines = dict(re.findall(r"^#define (\w+) (\d+)$", text, re.M))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    text = re.sub(r"^static inline .*?^}$", "", text, flags=re.M | re.S)
    for name, value in defines.items():
        text = re.sub(rf"\b{name}\b", value, text)
    return text


@functools.cache
def library() -> tuple[Any, Any]:
    """(ffi, lib) of the pure files."""
    ffi = cffi.FFI()
    for name in PURE:
        ffi.cdef(declarations(SHIM / f"{name}.h"))
    out = Path(tempfile.mkdtemp(prefix="greenboost-pure-")) / "pure.so"
    build = ["cc", "-std=gnu11", "-g", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(out)]
    subprocess.run([*build, *(str(SHIM / f"{name}.c") for name in PURE + PARTS)], check=True)
    lib = ffi.dlopen(str(out))
    out.unlink()
    out.parent.rmdir()
    return ffi, lib
