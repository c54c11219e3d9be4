# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of several directories share."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on the disk that the sources are on, where tmp_path may be in a tmpfs.

    Since Linux 6.6 that has O_DIRECT, but asks for no alignment; and its files can be sealed.
    """
    build = Path(__file__).parents[1] / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="test.", dir=build) as directory:
        yield Path(directory)
