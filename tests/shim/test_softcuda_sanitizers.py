# SPDX-License-Identifier: GPL-2.0-or-later
"""The software device under sanitizers, used from many threads by a program in C."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from . import sanitizer
from .conftest import SOFTCUDA, make
from .tiers import Runner

ROOT = Path(__file__).parents[2]


def build(sanitizer: str, folder: Path) -> Path:
    """stress.c and the device, instrumented."""
    make(SOFTCUDA, f"SANITIZE={sanitizer}", "CFLAGS=-O1 -g")
    library = SOFTCUDA / "build" / sanitizer.split(",")[0] / "libcuda.so.1"
    program = folder / "stress"
    source = Path(__file__).parent / "softcuda" / "stress.c"
    command = ["cc", "-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += [f"-fsanitize={sanitizer}", f"-I{ROOT / 'shim'}", f"-I{SOFTCUDA}", "-o", str(program)]
    command += [str(source), str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run(command, check=True)
    return program


def run(program: Path, late: str) -> subprocess.CompletedProcess[str]:
    environment = {"SOFTCUDA_VRAM": "64MiB", "SOFTCUDA_POISON": "1", "SOFTCUDA_LATE": late}

    def once(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, program],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    done = once()
    if "unexpected memory mapping" in done.stderr:
        # Older ThreadSanitizers cannot run where addresses are as random as newer systems make them.
        done = once("setarch", "--addr-no-randomize")
        if "setarch: failed to set personality" in done.stderr:
            pytest.skip(f"the sanitizer needs addresses that are not random: {done.stderr}")
    return done


@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_many_threads_leave_nothing_for_a_sanitizer(sanitizer: str, late: str, tmp_path: Path) -> None:
    done = run(build(sanitizer, tmp_path), late)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not sanitizer.SANITIZE, reason="for tools/test --sanitize")
def test_the_shim_s_tests_run_with_the_sanitizer(runner: Runner) -> None:
    """A runtime that was not loaded would find nothing anywhere."""
    maps = runner.tiered("--chunk 2MiB --vram 40MiB", "-c", "print(open('/proc/self/maps').read())").out
    first = sanitizer.SANITIZE.split(",")[0]
    assert {"thread": "libtsan", "address": "libasan"}[first] in maps
    assert f"build-{first}/libgreenboost_cuda.so" in maps
