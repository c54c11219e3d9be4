# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests in here run in a guest of tools/vm, where tests/vm/test_guest.py starts them.

On the host they are not collected: they load modules and write to block devices.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if "GREENBOOST_VM" in os.environ else ["test_*.py"]
