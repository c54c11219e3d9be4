# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of several directories share, and which must not run at the same time."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

_ONE_PROCESS = ("tests/vm/", "tests/gpu/", "tests/e2e/test_demo.py::")
"""What pytest-xdist is to leave together: guests enough to keep all processors busy are started there anyway,
there is one GPU, and there may be one demo at a time in a checkout. The largest of them begins first."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    # The mark xdist_group is of no use with pytest 9.2: https://github.com/pytest-dev/pytest-xdist/issues/1386
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # it ships no types
        def _split_scope(self, nodeid: str) -> str:
            return next((part for part in _ONE_PROCESS if nodeid.startswith(part)), nodeid)

    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    # In guests, that plugin is left out, and importing what it is for takes seconds.
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import settings

        # How long an example takes is the machine's affair, and what else runs there.
        settings.register_profile("greenboost", deadline=None)
        settings.load_profile("greenboost")


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
