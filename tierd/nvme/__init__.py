# SPDX-License-Identifier: GPL-2.0-or-later
"""T3: chunks in spill files and on block devices, moved by io_uring, driven by trio.

stripe is the face of it; the rest, from top to bottom: spillfile, spillpath and superblock (one
path), extents and checksum (what it holds), ring, ringsetup and table (io_uring), and
engine*.c, its loops.
"""

from .errors import ExtentError, MemlockError, NoSpace, RingError, SpillPathError, SpillWriteError
from .extents import Extent
from .slots import Arena
from .spillfile import SpillFile
from .stripe import SpillSet, open_spill_files, open_spill_set

__all__ = [
    "Arena",
    "Extent",
    "ExtentError",
    "MemlockError",
    "NoSpace",
    "RingError",
    "SpillFile",
    "SpillPathError",
    "SpillSet",
    "SpillWriteError",
    "open_spill_files",
    "open_spill_set",
]
