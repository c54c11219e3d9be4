# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost bench gpu on a real GPU, with its small model: every mode runs, and ours give the same bits.

What it measures is asserted nowhere: a test's machine is rarely idle.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PYTHON

pytestmark = pytest.mark.gpu


def test_quick(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tierd.cli", "bench", "gpu", "--quick", "--python", PYTHON]
    command += ["--spill", str(tmp_path), "--json", str(file), "--timeout", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    answer = json.loads(file.read_text())
    modes = {one["mode"]: one for one in answer["modes"] if one["status"] != "left out"}
    assert {"vram", "shim", "paged", "paged+nvme"} <= modes.keys()
    for mode, one in modes.items():
        assert one["status"] == "ok", one["reason"]
        assert one["peak_vram_bytes"] > 0
        # What others move differently, they may also compute differently.
        if mode in ("shim", "paged", "paged+nvme", "mapped"):
            assert one["same_bits"], one["max_abs_difference"]
    assert modes["paged"]["peak_vram_bytes"] < modes["vram"]["peak_vram_bytes"]
    assert modes["paged"]["decode"]["moved"]["h2d_bytes"] > 0
    assert modes["paged+nvme"]["decode"]["moved"]["nvme_read_bytes"] > 0
    assert list(tmp_path.iterdir()) == [file]
