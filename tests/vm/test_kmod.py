# SPDX-License-Identifier: GPL-2.0-or-later
"""The module, in a guest of each kernel: what is in tests/vm/guest/kmod."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.vm.conftest import PYTEST, Start
from vmhost import BUILD, ROOT
from vmhost.kernel import SERIES

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: nothing in a VM is tested"),
    pytest.mark.skipif(
        not all((BUILD / "kernels" / series).exists() for series in SERIES),
        reason="no kernels in build/vm (tools/setup vm fetches them): nothing in a VM is tested",
    ),
]

TESTS = ROOT / "tests" / "vm" / "guest" / "kmod"


@pytest.fixture(scope="session")
def programs() -> Path:
    """Those in C, compiled; under the checkout, for the guest does not see this system's /tmp."""
    directory = BUILD / "kmod-tests"
    directory.mkdir(parents=True, exist_ok=True)
    for source in TESTS.glob("*.c"):
        command = ["gcc", "-O2", "-g", "-Wall", "-Wextra", "-Werror", str(source)]
        subprocess.run([*command, "-o", str(directory / source.stem), "-luring", "-lpthread"], check=True)
    return directory


@pytest.fixture(scope="module")
def runs(each_guest: Start, programs: Path) -> dict[str, Future[subprocess.CompletedProcess[str]]]:
    # Beyond the usual, the full run of the fuzzer: test_fuzz.py says how to ask for it.
    passed_on = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith("GREENBOOST_FUZZ_")
    ]
    timeout = "7200" if passed_on else "1800"

    def run(kernel: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "tools" / "vm"), "--kernel", kernel, "--nvme", "64MiB", "--timeout", timeout]
        if kernel == [*SERIES][-1]:
            command += ["--nodes", "2"]
        command += ["--module", "--module", str(TESTS / "importer")]
        command += ["--", "env", f"KMOD_PROGRAMS={programs}", *passed_on, *PYTEST, str(TESTS)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")

    return each_guest(run)


@pytest.mark.parametrize("guest", SERIES)
def test_module(guest: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    done = runs[guest].result()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
