# SPDX-License-Identifier: GPL-2.0-or-later
"""child.py LIBRARY MODULE FUNCTION: runs one test's body (harness.run)."""

from __future__ import annotations

import importlib
import inspect
import sys

from .driver import Driver

if __name__ == "__main__":
    library, module, name = sys.argv[1:]
    function = getattr(importlib.import_module(module), name)
    body = getattr(function, "body", function)
    # A body that asks for a path starts the driver itself.
    wants_path = "library" in inspect.signature(body).parameters
    body(library if wants_path else Driver(library))
