# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m replay``"""

import sys

from replay.program import main

sys.exit(main())
