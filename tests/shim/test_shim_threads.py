# SPDX-License-Identifier: GPL-2.0-or-later
"""The shim used from several threads at once, by programs in C."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from . import sanitizer
from .pieces import SMALL
from .tiers import Runner

SHIM = Path(__file__).parents[2] / "shim"
SOURCES = Path(__file__).parent / "threads"


def build(name: str, folder: Path, *others: Path, flags: Sequence[str] = ()) -> Path:
    program = folder / name
    command = ["cc", "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += sanitizer.FLAGS
    command += flags
    command += [
        f"-I{SHIM}",
        f"-I{sanitizer.build_folder(SHIM, '-')}",
        "-o",
        str(program),
        str(SOURCES / f"{name}.c"),
    ]
    subprocess.run([*command, *map(str, others)], check=True)
    return program


def run(program: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*sanitizer.prefix(), program],
        env={**os.environ, **sanitizer.environment(program.parent)},
        capture_output=True,
        text=True,
        timeout=300 if sanitizer.SANITIZE else 60,
    )
    assert (found := sanitizer.findings(program.parent)) == "", found
    return done


def test_an_allocated_address_is_never_out_of_bounds(tmp_path: Path) -> None:
    done = run(build("bounds", tmp_path))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("uses", ("residency",)),
        ("overwritten", ("release",)),
        ("give_up", ("residency", "release")),
        ("in_place", ("residency", "release")),
        ("stopped", ("residency", "release")),
        ("turn", ("residency", "release")),
    ],
)
def test_the_chunk_table_alone(tmp_path: Path, name: str, more: tuple[str, ...]) -> None:
    """What each of these programs says at its beginning."""
    parts = (
        "alloc_map",
        "choose",
        "meant",
        "sparse",
        "client",
        "address",
        "mover",
        "log",
        "gate",
        "pins",
        "thread",
        "ticket",
        *more,
    )
    parts += ("function", "held", "packet", "predict", "predict_log", "predict_plan", "reattach")
    parts += ("spool", "timing", "trace", "trace_write", "grace", "guess")
    program = build(name, tmp_path, *(SHIM / f"{part}.c" for part in parts))
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.usefixtures("shim")
def test_kernels_of_a_context_that_ended_are_forgotten(tmp_path: Path) -> None:
    left_out = re.compile("context|params|interpose|graph.*")
    parts = [part for part in SHIM.glob("*.c") if not left_out.fullmatch(part.stem)]
    program = build("context_ends", tmp_path, *parts)
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize(
    ("source", "take", "use"),
    [
        ("function", "pthread_mutex_lock(&lock)", "functions_forget()"),
        ("params", "pthread_rwlock_wrlock(&lock)", "params_forget()"),
        ("ticket", "pthread_mutex_lock(&pool_lock)", "tickets_forget_context(NULL)"),
        ("ordered", "pthread_mutex_lock(&pools_lock)", "hook_cuMemPoolDestroy(0, NULL)"),
        ("gate", "pthread_mutex_lock(&captures_lock)", "gate_capture_begins()"),
        ("gate", "gate_enter()", "gate_capture_begins()"),
    ],
)
def test_a_forked_child_waits_for_no_thread(tmp_path: Path, source: str, take: str, use: str) -> None:
    others = [SHIM / "function.c"] if source == "params" else []
    flags = [f'-DSOURCE="{source}.c"', f"-DTAKE={take}", f"-DUSE={use}"]
    flags += ["-ffunction-sections", "-Wl,--gc-sections"]  # what is not reached needs no other files
    done = run(build("forked", tmp_path, *others, flags=flags))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("mode", ["alloc", "stream", "room", "names"])
def test_threads_that_page_at_once(runner: Runner, softcuda: Path, mode: str, late: str) -> None:
    program = build("tiers", runner.folder, softcuda)
    execute = f"import os; os.execv({str(program)!r}, [{str(program)!r}, '3', {mode!r}])"
    result = runner.tiered(SMALL, "-c", execute, SOFTCUDA_LATE=late)
    assert (result.status, result.out) == (0, "right\n"), result.err
    assert result.counters["evictions"] > 0
