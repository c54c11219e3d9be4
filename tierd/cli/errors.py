# SPDX-License-Identifier: GPL-2.0-or-later
"""How a command ends when it cannot do what was asked."""

from __future__ import annotations

__all__ = ["CommandError", "UsageError"]


class CommandError(Exception):
    """Something failed; the message says what, where and what to do. Exit status 1."""

    status = 1


class UsageError(CommandError):
    """What was asked or configured cannot be: exit status 2."""

    status = 2
