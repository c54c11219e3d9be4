# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m minilm``"""

import sys

from minilm.program import main

sys.exit(main())
