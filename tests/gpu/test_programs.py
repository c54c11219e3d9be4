# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs nobody changed, on a real GPU: the same bits with VRAM to spare and with half of what they need.

Run with ``tools/test tests/gpu`` on a machine with an NVIDIA GPU and PyTorch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU here", allow_module_level=True)

pytestmark = pytest.mark.gpu

PROGRAMS = Path(__file__).parent / "programs"
MIB = 1 << 20
CASES = {
    # what it holds on the GPU, bytes
    "matmul": (["matmul.py", "{out}", "24", "4096"], 24 * 4096 * 4096 * 4),
    "llama": (["llama.py", "{out}"], 520 * MIB),
}
ENVIRONMENT = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def run(name: str, out: Path, *flags: str) -> dict[str, Any]:
    """Run the program, under `greenboost run` if there are flags. Returns what it wrote of itself."""
    program, *args = CASES[name][0]
    command = [sys.executable, str(PROGRAMS / program), *(arg.format(out=out) for arg in args)]
    report = out.with_suffix(".json")
    if flags:
        greenboost = shutil.which("greenboost")
        start = [greenboost] if greenboost else [sys.executable, "-m", "tierd.cli"]
        command = [*start, "run", "--json", str(report), *flags, "--", *command]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text()) if flags else {}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return bool(torch.equal(left, right))


@pytest.mark.parametrize("chunk", ["2MiB", "16MiB"])
@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name: str, chunk: str, tmp_path: Path) -> None:
    run(name, tmp_path / "bare.pt")
    run(name, tmp_path / "spare.pt", "--chunk", chunk, "--vram", "8GiB", "--ram", "4GiB")
    half = CASES[name][1] // 2 // MIB
    report = run(name, tmp_path / "half.pt", "--chunk", chunk, "--vram", f"{half}MiB", "--ram", "4GiB")
    bare, spare, capped = (torch.load(tmp_path / f"{n}.pt") for n in ("bare", "spare", "half"))
    assert same(bare, spare)
    assert same(bare, capped)
    assert report["total"]["counters"]["d2h_bytes"] > 0


def test_same_numbers_over_nvme(tmp_path: Path) -> None:
    """RAM too small for the rest: it goes to a spill file."""
    run("matmul", tmp_path / "bare.pt")
    tiers = ["--vram", "600MiB", "--ram", "256MiB", "--spill", f"{tmp_path / 'spill'}:3GiB"]
    report = run("matmul", tmp_path / "nvme.pt", "--chunk", "16MiB", *tiers)
    assert same(torch.load(tmp_path / "bare.pt"), torch.load(tmp_path / "nvme.pt"))
    assert report["total"]["nvme_written_bytes"] > 0
    assert not (tmp_path / "spill").exists()
