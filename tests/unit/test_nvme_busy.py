# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import time
from contextlib import suppress

import pytest

from tierd.nvme.busy import Busy


def test_what_is_under_way_together_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    busy = Busy()
    now = 105
    assert busy.ns == 0
    with busy:
        now = 107
        assert busy.ns == 2
        with busy:
            now = 110
        now = 111
        assert busy.ns == 6
    now = 120
    assert busy.ns == 6
    with suppress(OSError), busy:
        now = 123
        raise OSError
    now = 130
    assert busy.ns == 9
