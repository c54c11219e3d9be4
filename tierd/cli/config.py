# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost config check FILE"""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import config
from ..model import format_size
from .errors import UsageError
from .parsers import Commands, add_command

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("config", help="look at a configuration file")
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = add_command(
        below,
        "check",
        _check,
        help="check a configuration file and say what it means",
        example="greenboost config check /etc/greenboost/tierd.toml",
    )
    check.add_argument("file", metavar="FILE", type=Path)


def _check(options: argparse.Namespace) -> int:
    try:
        settings = config.check(options.file)
    except config.ConfigError as error:
        raise UsageError(str(error)) from None
    print(f"{options.file}: ok")
    print(f"  socket  {settings.socket}")
    print(f"  chunk   {format_size(settings.chunk)}")
    print(f"  ram     {format_size(settings.ram)} in arenas of {format_size(settings.arena)}")
    print(f"  source  {settings.arena_source}")
    print(f"  reserve {'5%' if settings.reserve is None else format_size(settings.reserve)}")
    for spill in settings.spill:
        size = "all there is room for" if spill.size is None else format_size(spill.size)
        print(f"  spill   {spill.path} ({size})")
    if settings.view is not None:
        print(f"  view    {settings.view}")
    return 0
