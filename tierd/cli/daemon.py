# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost daemon: the daemon in the foreground, for a service manager or a terminal."""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path

import trio

from .. import config, daemon
from ..startup import StartupError
from .errors import CommandError, UsageError
from .parsers import TIER_FLAGS, Commands, add_command, add_paging, add_socket, add_tiers
from .private import report_failed, report_ready

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "daemon",
        _daemon,
        help="serve applications until stopped, in the foreground",
        example="greenboost daemon --ram 50% --spill /mnt/nvme/greenboost.spill:200GiB",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"the settings, which flags overrule (default {config.DEFAULT_FILE}, if there)",
    )
    add_tiers(parser)
    add_paging(parser)
    add_socket(parser)
    # For `greenboost run`: see private.py.
    parser.add_argument("--life-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)


def _daemon(options: argparse.Namespace) -> int:
    private = options.life_fd is not None
    # A private daemon shares the command's terminal: it speaks only when something is wrong.
    level = logging.WARNING if private else logging.INFO
    logging.basicConfig(format="greenboost daemon: %(message)s", level=level)
    try:
        _serve(options)
    except CommandError as error:
        if options.ready_fd is None:
            raise
        report_failed(options.ready_fd, error)
        return error.status
    return 0


def _serve(options: argparse.Namespace) -> None:
    flags = {name: getattr(options, name) for name in ("socket", "paging", *TIER_FLAGS)}
    try:
        settings = config.load(options.config, os.environ, flags)
        ready = trio.TASK_STATUS_IGNORED if options.ready_fd is None else _Ready(options.ready_fd)
        trio.run(partial(daemon.serve, settings, life_fd=options.life_fd, task_status=ready))
    except (config.ConfigError, StartupError) as error:
        raise UsageError(str(error)) from None


class _Ready:
    """A task status that tells `greenboost run` through its pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def started(self, _value: None = None) -> None:
        report_ready(self._fd)
