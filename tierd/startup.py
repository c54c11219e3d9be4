# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a daemon could not start. Everything is undone when one of these is raised."""

from __future__ import annotations

__all__ = ["MountError", "SpillStartupError", "StartupError"]


class StartupError(Exception):
    """The daemon could not start; the text is one line for people."""


class SpillStartupError(StartupError):
    """A spill path cannot be used; the text begins with where it was asked for."""


class MountError(StartupError):
    """The view cannot be mounted."""
