# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m tierd.cli: the greenboost command where its script is not on the path."""

import sys

from .main import main

sys.exit(main())
