# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands' argument parsers and tables share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..config import ARENA_SOURCES
from ..model import MAX_CHUNK, MIN_CHUNK, PAGING_MODES, SizeError, parse_size

__all__ = [
    "TIER_FLAGS",
    "Commands",
    "add_command",
    "add_paging",
    "add_socket",
    "add_tiers",
    "as_chunk",
    "as_count",
    "as_size",
    "columns",
]

TIER_FLAGS = ("ram", "chunk", "arena", "arena_source", "reserve", "spill", "view")
"""What add_tiers() adds, as config.load() calls it."""

# Quoted: argparse's class takes a parameter for type checkers only.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, command: Callable[[argparse.Namespace], int], *, help: str, example: str
) -> argparse.ArgumentParser:
    """A parser for `greenboost NAME` that runs `command`; `example` ends its --help."""
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command)
    return parser


def add_socket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", metavar="PATH", help="the daemon's socket, where it is not the usual one")


def add_paging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--paging",
        metavar="HOW",
        help=f"what becomes of what VRAM has no room for: {', '.join(PAGING_MODES)}: it comes and goes, "
        "it is used in place in RAM, or there is only what the driver has",
    )


def add_tiers(parser: argparse.ArgumentParser) -> None:
    """The flags that say what a daemon has to give; their names are config.Config's."""
    parser.add_argument(
        "--ram", metavar="SIZE", help="RAM it may use: 12GiB, 31.8GB, 50%% of what is available"
    )
    parser.add_argument("--chunk", metavar="SIZE", help="unit of movement: a power of two, 2MiB to 64MiB")
    parser.add_argument("--arena", metavar="SIZE", help="RAM is taken and given back in pieces of this size")
    parser.add_argument(
        "--arena-source",
        metavar="HOW",
        help=f"what that RAM is made of: {', '.join(ARENA_SOURCES)} (the module's if it is there)",
    )
    parser.add_argument(
        "--reserve",
        metavar="SIZE",
        help="RAM that stays available to others, where the module does not say; 0 for none",
    )
    parser.add_argument(
        "--spill",
        metavar="PATH[:SIZE]",
        action="append",
        help="a file or block device for what RAM cannot hold; may be repeated",
    )
    parser.add_argument("--view", metavar="DIR", help="mount the view on this empty directory")


def as_size(text: str) -> int:
    """For argparse's `type`: bytes."""
    try:
        return parse_size(text)
    except SizeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def as_chunk(text: str) -> int:
    """For argparse's `type`: bytes of a chunk."""
    found = as_size(text)
    if not MIN_CHUNK <= found <= MAX_CHUNK or found & (found - 1):
        raise argparse.ArgumentTypeError(f"{text}: a chunk is a power of two from 2MiB to 64MiB")
    return found


def as_count(text: str) -> int:
    """For argparse's `type`: a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines whose cells stand one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
