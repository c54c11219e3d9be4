# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is given back under pressure: what is in tests/vm/guest/pressure, in guests of 2 GiB."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import Future

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


# On 6.1 io_uring does not register the module's memory, so arenas are memfds there.
GUESTS = {"module": ["--kernel", "6.12", "--module"], "no module": ["--kernel", "6.1"]}


@pytest.fixture(scope="module")
def runs(each_guest: Start) -> dict[str, Future[subprocess.CompletedProcess[str]]]:
    def run(guest: str) -> subprocess.CompletedProcess[str]:
        machine = [str(ROOT / "tools" / "vm"), *GUESTS[guest], "--timeout", "900", "--nvme", "256MiB"]
        command = ["env", "GREENBOOST_PRESSURE=1", *PYTEST, "tests/vm/guest/pressure"]
        return subprocess.run(
            [*machine, "--", *command], cwd=ROOT, capture_output=True, text=True, errors="replace"
        )

    return each_guest(run)


@pytest.mark.parametrize("guest", GUESTS)
def test_memory_comes_back(guest: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    done = runs[guest].result()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
