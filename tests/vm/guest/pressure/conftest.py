# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests in here run in a guest of their own, of 2 GiB: tests/vm/test_pressure.py starts it."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("GREENBOOST_PRESSURE") else ["test_*.py"]
