# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of several directories share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest


def _open_files() -> dict[int, str]:
    files = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            files[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that the listing itself used
    return files


@pytest.fixture
def no_leaked_fds() -> Iterator[None]:
    """Fails a test that leaves a file descriptor open."""
    before = _open_files()
    yield
    # What only the collector still holds is no leak of the code's: a failed assertion keeps frames.
    gc.collect()
    after = _open_files()
    assert {fd: name for fd, name in after.items() if before.get(fd) != name} == {}
