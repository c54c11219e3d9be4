# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs nobody changed, on a real GPU: the same bits with VRAM to spare and with a third of their need.

Run with ``tools/test --gpu`` on a machine with an NVIDIA GPU: see conftest.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import PYTHON

pytestmark = pytest.mark.gpu

PROGRAMS = Path(__file__).parent / "programs"
MIB = 1 << 20
MATMUL = ["matmul.py", "24", "4096"]
CASES = {  # what it imports, and the command
    "matmul": ("torch", MATMUL),
    "blaslt": ("torch", ["blaslt.py"]),
    "captured": ("torch", ["captured.py"]),
    "compiled": ("triton", ["compiled.py"]),
    "llama": ("transformers", ["llama.py"]),
    "moe": ("transformers", ["moe.py"]),
    "train": ("transformers", ["train.py"]),
    "triton": ("triton", ["with_triton.py"]),
    "cupy": ("cupy", ["with_cupy.py"]),
    "jax": ("jax", ["with_jax.py"]),
    "numba": ("numba", ["with_numba.py"]),
}
ENVIRONMENT = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def start(
    command: list[str], *flags: str, report: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run it, under `greenboost run` if there are flags."""
    if flags:
        command = [sys.executable, "-m", "tierd.cli", "run", "--json", str(report), *flags, "--", *command]
    environment = {**ENVIRONMENT, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    print(done.stdout, done.stderr)
    return done


def run(program: list[str], out: Path, *flags: str) -> dict[str, Any]:
    """Returns what was written of it, nothing without flags."""
    report = out.with_suffix(".json")
    name, *arguments = program
    done = start([PYTHON, str(PROGRAMS / name), str(out), *arguments], *flags, report=report)
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text()) if flags else {}


def needed(report: dict[str, Any]) -> int:
    """What its processes had allocated at most, bytes."""
    return sum(int(session["peak_chunks"]) for session in report["sessions"]) * int(report["chunk_bytes"])


def same(left: Path, right: Path) -> bool:
    with np.load(left) as ours, np.load(right) as theirs:
        # Bytes, so that a NaN is like itself.
        return ours.files == theirs.files and all(
            ours[name].tobytes() == theirs[name].tobytes() for name in ours.files
        )


def test_one_product_larger_than_vram(tmp_path: Path) -> None:
    """Of 3 GiB that a product names 2 have room: the rest is read in RAM."""
    pytest.importorskip("torch")
    program = ["matmul.py", "2", "16384"]
    run(program, tmp_path / "whole.npz")
    report = run(program, tmp_path / "part.npz", "--vram", "2GiB", "--chunk", "16MiB", "--ram", "8GiB")
    assert same(tmp_path / "whole.npz", tmp_path / "part.npz")
    assert report["total"]["counters"]["launches_exceeding"] > 0


WHERE = """
import sys, torch
held = [torch.zeros(size << 20, dtype=torch.uint8, device="cuda") for size in (12, 16, 64, 300)]
with open("/proc/self/maps") as maps:
    process = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
print(*(hex(memory.data_ptr()) for memory in held), file=sys.stderr)
for memory in held:
    at, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
    assert at >> 32 >= 0x1000, hex(at)
    for low, high in process:  # in order
        if low <= at < high:
            at = high
    assert at >= end, hex(at)
"""


def test_where_paged_memory_lies(tmp_path: Path) -> None:
    """Where two small integers are no address; the process's, too: RAM used in place is mapped there."""
    pytest.importorskip("torch")
    flags = ["--vram", "1GiB", "--ram", "1GiB", "--chunk", "4MiB"]
    done = start([PYTHON, "-c", WHERE], *flags, report=tmp_path / "where.json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("chunk", ["2MiB", "16MiB"])
@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name: str, chunk: str, tmp_path: Path) -> None:
    module, program = CASES[name]
    if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
        pytest.skip(f"no {module} in {PYTHON}: {name} is NOT tested")
    script, *arguments = program
    command = [PYTHON, str(PROGRAMS / script), str(tmp_path / "bare.npz"), *arguments]
    bare = start(command, report=tmp_path)
    if bare.returncode:
        pytest.skip(f"{name} is NOT tested, it fails without GreenBoost: {bare.stderr.splitlines()[-1:]}")
    tiers = ["--ram", "6GiB", "--chunk", chunk]
    spare = run(program, tmp_path / "spare.npz", "--vram", "8GiB", *tiers)
    assert same(tmp_path / "bare.npz", tmp_path / "spare.npz")
    third = needed(spare) // 3 // MIB
    capped = run(program, tmp_path / "third.npz", "--vram", f"{third}MiB", *tiers)
    assert same(tmp_path / "bare.npz", tmp_path / "third.npz")
    assert capped["total"]["counters"]["d2h_bytes"] > 0


@pytest.mark.parametrize(("name", "vram"), [("llama", "200MiB"), ("train", "1200MiB")])
def test_expandable_segments(name: str, vram: str, tmp_path: Path) -> None:
    """One allocation in which hardly any object's end is known: right, or ended with an error that tells."""
    command = [PYTHON, str(PROGRAMS / f"{name}.py")]
    bare, third = tmp_path / "bare.npz", tmp_path / "third.npz"
    report, flags = tmp_path / "third.json", ["--vram", vram, "--ram", "6GiB", "--chunk", "16MiB"]
    segments = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert start([*command, str(bare)], report=report, **segments).returncode == 0
    done = start([*command, str(third)], *flags, report=report, **segments)
    if done.returncode == 0:
        assert same(bare, third)
    else:
        assert "a kernel touched an address where nothing is" in done.stderr


def test_two_gpus(tmp_path: Path) -> None:
    """A model's layers on both, each with a third of what there is on it."""
    probe = "import accelerate, torch, transformers; print(torch.cuda.device_count())"
    found = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True).stdout.strip()
    if not found or int(found) < 2:
        pytest.skip("no accelerate, transformers or second GPU: two GPUs are NOT tested")
    program, tiers = ["two_gpus.py"], ["--ram", "6GiB", "--chunk", "2MiB"]
    bare = start([PYTHON, str(PROGRAMS / program[0]), str(tmp_path / "bare.npz")], report=tmp_path)
    assert bare.returncode == 0, bare.stderr
    spare = run(program, tmp_path / "spare.npz", "--vram", "8GiB", *tiers)
    assert same(tmp_path / "bare.npz", tmp_path / "spare.npz")
    third = needed(spare) // 2 // 3 // MIB
    capped = run(program, tmp_path / "third.npz", "--vram", f"{third}MiB", *tiers)
    assert same(tmp_path / "bare.npz", tmp_path / "third.npz")
    assert len(capped["sessions"]) == 2
    for session in capped["sessions"]:
        assert session["counters"]["d2h_bytes"] > 0


def test_same_numbers_over_nvme(tmp_path: Path) -> None:
    """RAM too small for the rest: it goes to a spill file."""
    run(MATMUL, tmp_path / "bare.npz")
    tiers = ["--vram", "600MiB", "--ram", "256MiB", "--spill", f"{tmp_path / 'spill'}:3GiB"]
    report = run(MATMUL, tmp_path / "nvme.npz", "--chunk", "16MiB", *tiers)
    assert same(tmp_path / "bare.npz", tmp_path / "nvme.npz")
    assert report["total"]["nvme_written_bytes"] > 0
    assert not (tmp_path / "spill").exists()


@pytest.fixture(scope="module")
def pointers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc here: pointers in device memory are NOT tested")
    program = tmp_path_factory.mktemp("pointers") / "pointers"
    command = [compiler, "-O2", "-cudart", "shared", "-arch=native", "-o", str(program)]
    subprocess.run([*command, str(PROGRAMS / "pointers.cu")], check=True)
    return program


@pytest.mark.parametrize("mode", ["auto", "mapped"])
def test_pointers_in_device_memory(mode: str, pointers: Path, tmp_path: Path) -> None:
    """Right, or ended with an error: never wrong numbers."""
    bare, third = tmp_path / "bare", tmp_path / "third"
    assert start([str(pointers), str(bare)], report=bare).returncode == 0
    flags = ["--vram", "256MiB", "--ram", "2GiB", "--chunk", "2MiB", "--paging", mode]
    done = start([str(pointers), str(third)], *flags, report=tmp_path / "third.json")
    if mode == "mapped":
        assert done.returncode == 0
    if done.returncode == 0:
        assert third.read_bytes() == bare.read_bytes()
    else:
        assert "a kernel touched an address where nothing is" in done.stderr
