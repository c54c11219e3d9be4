# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests in here need the module: tests/vm/test_kmod.py runs them in a guest that has it."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("GREENBOOST_MODULES") else ["test_*.py"]
