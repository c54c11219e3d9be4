# SPDX-License-Identifier: GPL-2.0-or-later
"""What several files of tests use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .fake_shim import new_state
from .reattach_harness import Application


@pytest.fixture
def application() -> Iterator[Application]:
    it = Application(new_state())
    yield it
    for fd in (it.state, *it.arenas.values()):
        os.close(fd)
