# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that benchmarks make: without a name, so that however we end they go with us."""

from __future__ import annotations

import errno
import os
import tempfile

__all__ = ["unnamed_file"]


def unnamed_file(directory: str | os.PathLike[str]) -> int:
    """A descriptor of a new file on the file system of `directory`, the caller's. Raises OSError."""
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    # This file system has no O_TMPFILE.
    fd, made = tempfile.mkstemp(prefix=".greenboost-", dir=directory)
    os.unlink(made)
    return fd
