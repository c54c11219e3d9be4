# SPDX-License-Identifier: GPL-2.0-or-later
"""The way in: what was typed, to the command that it names; every error to one line and a status."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Never

from .. import __version__
from .errors import CommandError

__all__ = ["main"]

_COMMANDS = ("run", "daemon", "status", "spill", "doctor", "mount", "config", "bench")
"""Each is a module of this package, and its add_to() says what it takes."""

_EXAMPLES = """\
examples:
  greenboost run --vram 8GiB --spill /mnt/nvme/spill:64GiB -- python generate.py
  greenboost doctor
  greenboost status
"""


class _Parser(argparse.ArgumentParser):
    """argparse with errors in our form: what is wrong, where, and what to do."""

    def error(self, message: str) -> Never:
        self.exit(2, f"greenboost: {message}; see '{self.prog} --help'\n")


def _parser(commands: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="greenboost",
        description="Let a GPU use system RAM and NVMe as one memory with its VRAM.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"greenboost {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        importlib.import_module(f".{command}", __package__).add_to(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (sys.argv without the first) name; its exit status."""
    if arguments is None:
        arguments = sys.argv[1:]
    # Only what is named is imported: all together take longer than most commands do.
    named = [word for word in arguments[:1] if word in _COMMANDS]
    options = _parser(named or _COMMANDS).parse_args(arguments)
    try:
        status: int = options.command(options)
        # Here and not at exit, where a closed pipe could only be reported, not handled.
        sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"greenboost: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Whoever read us (head, less) has enough. Python would complain once more while exiting.
        sys.stdout = None
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
