# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost mount DIR, greenboost unmount"""

from __future__ import annotations

import argparse
import os

from .control import ask, daemon_socket
from .errors import UsageError
from .parsers import Commands, add_command, add_socket

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    mount = add_command(
        commands,
        "mount",
        _mount,
        help="have the running daemon show its view on an empty directory",
        example="greenboost mount /run/greenboost/view",
    )
    mount.add_argument("dir", metavar="DIR")
    add_socket(mount)
    unmount = add_command(
        commands,
        "unmount",
        _unmount,
        help="have the running daemon take its view away",
        example="greenboost unmount",
    )
    add_socket(unmount)


def _mount(options: argparse.Namespace) -> int:
    # The daemon's current directory is another one.
    directory = os.path.abspath(options.dir)
    try:
        directory.encode()
    except UnicodeEncodeError:  # the protocol's text is
        raise UsageError(f"mount: {directory!r}: the path is not UTF-8") from None
    ask(daemon_socket(options.socket), "mount", dir=directory)
    return 0


def _unmount(options: argparse.Namespace) -> int:
    ask(daemon_socket(options.socket), "unmount")
    return 0
