# SPDX-License-Identifier: GPL-2.0-or-later
"""T3: chunks in spill files and on block devices, moved by io_uring, driven by trio.

spillset is the face of it; the rest, from top to bottom: watch, drain, probe and stripe (what is done
with paths); path, health, budget, extents, checksum and crypt (one path in use); spillfile, spillpath
and superblock (its file); transit and fill (memory); ring, ringsetup and table (io_uring), and engine*.c,
its loops.
"""

from .errors import ExtentError, MemlockError, NoSpace, RingError, SpillPathError, SpillWriteError
from .slots import Arena
from .spillfile import SpillFile, open_spill_files
from .spillset import SpillSet, Stored, open_spill_set

__all__ = [
    "Arena",
    "ExtentError",
    "MemlockError",
    "NoSpace",
    "RingError",
    "SpillFile",
    "SpillPathError",
    "SpillSet",
    "SpillWriteError",
    "Stored",
    "open_spill_files",
    "open_spill_set",
]
