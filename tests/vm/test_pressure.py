# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is given back under pressure: what is in tests/vm/guest/pressure, in guests of 2 GiB."""

from __future__ import annotations

import os
import subprocess

import pytest

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

# The hypothesis plugin alone takes seconds to import there.
PYTEST = (".venv/bin/python", "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")


# On 6.1 io_uring does not register the module's memory, so arenas are memfds there.
@pytest.mark.parametrize(
    ("kernel", "module"), [("6.12", ["--module"]), ("6.1", [])], ids=["module", "no module"]
)
def test_memory_comes_back(kernel: str, module: list[str]) -> None:
    machine = [str(ROOT / "tools" / "vm"), "--kernel", kernel, "--timeout", "900", "--nvme", "256MiB"]
    machine += module
    command = ["env", "GREENBOOST_PRESSURE=1", *PYTEST, "tests/vm/guest/pressure"]
    done = subprocess.run(
        [*machine, "--", *command], cwd=ROOT, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
