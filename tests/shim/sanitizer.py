# SPDX-License-Identifier: GPL-2.0-or-later
"""The shim's tests with the shim and the software device instrumented: tools/test --sanitize.

What is tested runs in programs that are not instrumented, Python for the most part. The sanitizer's
runtime is preloaded there before everything else, ends the process at the first finding, and writes
what it found to a file that the test then shows.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

__all__ = [
    "FLAGS",
    "SANITIZE",
    "SLOWER",
    "build_folder",
    "environment",
    "findings",
    "make_arguments",
    "prefix",
]

SANITIZE = os.environ.get("GREENBOOST_TEST_SANITIZE", "")
"""As for gcc's -fsanitize: "thread", "address,undefined", or nothing."""

FLAGS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
"""For programs in C of the tests' own."""

SLOWER = 10 if SANITIZE else 1
"""So many times as long a program may take."""

SUPPRESSIONS = Path(__file__).with_name("thread.supp")
_FIRST = SANITIZE.split(",")[0]


def make_arguments() -> list[str]:
    return [f"SANITIZE={SANITIZE}", "CFLAGS=-O1 -g -fno-omit-frame-pointer"] if SANITIZE else []


def build_folder(parent: Path, separator: str) -> Path:
    """Where a Makefile puts what it builds."""
    return parent / (f"build{separator}{_FIRST}" if SANITIZE else "build")


@functools.cache
def _runtimes() -> str:
    names = {"thread": ("libtsan.so",), "address": ("libasan.so", "libubsan.so")}.get(_FIRST, ())
    paths = []
    for name in names:
        command = ["cc", f"-print-file-name={name}"]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        assert os.path.isabs(found), f"the compiler has no {name}"
        paths.append(os.path.realpath(found))
    return " ".join(paths)


def environment(folder: Path) -> dict[str, str]:
    """Settings for the runtime, which writes to files in the folder."""
    if not SANITIZE:
        return {}
    common = f"halt_on_error=1:exitcode=66:log_path={folder}/sanitizer"
    return {
        # Races are sought in what is instrumented; Python's own use of memory is its affair.
        "TSAN_OPTIONS": f"{common}:ignore_noninstrumented_modules=1:die_after_fork=0:"
        f"suppressions={SUPPRESSIONS}",
        # Python leaks, and the software device answers faults itself. env(1), before it starts what is
        # tested, has the shim and not yet the runtime before it.
        "ASAN_OPTIONS": f"{common}:detect_leaks=0:handle_segv=0:allow_user_segv_handler=1:"
        "verify_asan_link_order=0",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
    }


def prefix(*preload: Path) -> list[str]:
    """What a command begins with, so that the runtime and the libraries are loaded first."""
    if not SANITIZE:
        return []
    # Older ThreadSanitizers cannot run where addresses are as random as newer systems make them.
    fixed = ["setarch", "--addr-no-randomize"] if _FIRST == "thread" else []
    return [*fixed, "env", f"LD_PRELOAD={' '.join([_runtimes(), *map(str, preload)])}"]


def findings(folder: Path) -> str:
    """What the runtime wrote, nothing if it found nothing."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("sanitizer.*")))
