# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost spill list|add|drain|remove: the spill paths of the running daemon."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import config
from ..model import format_size
from .control import ask, daemon_socket, status_of
from .errors import UsageError
from .parsers import Commands, add_command, add_socket, columns

__all__ = ["add_to"]

_FLAGS = {
    "weight": "--weight",
    "encrypt": "--encrypt",
    "daily_writes": "--daily-writes",
    "deadline": "--deadline",
    "poll": "--poll",
}


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "spill", help="list, add, drain or remove spill paths of the running daemon", allow_abbrev=False
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = add_command(
        actions,
        "list",
        _list,
        help="show the spill paths and how they fare",
        example="greenboost spill list --json | jq '.spill[].state'",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_socket(listing)
    add = add_command(
        actions,
        "add",
        _add,
        help="take a file or block device into use, or call its drain off",
        example="greenboost spill add /dev/nvme1n1 --encrypt --daily-writes 500GB",
    )
    add.add_argument("path", metavar="PATH[:SIZE]")
    add.add_argument(
        "--weight", type=float, metavar="N", help="multiplies the share that its speed gives it (default 1)"
    )
    add.add_argument(
        "--encrypt", action="store_true", default=None, help="with a key that is never written anywhere"
    )
    add.add_argument(
        "--daily-writes",
        metavar="SIZE",
        help="what may be written to it a day, to spare the drive",
    )
    add.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="set it aside when its device has not answered for so long (default 10)",
    )
    add.add_argument(
        "--poll",
        metavar="HOW",
        help="'io': poll the device for completions; 'sq': have the kernel poll for requests",
    )
    add.add_argument(
        "--force", action="store_true", help="overwrite what a block device holds, a file system too"
    )
    add_socket(add)
    for name, command, help in (
        ("drain", _drain, "give a spill path no more chunks and move those it holds elsewhere"),
        (
            "remove",
            _remove,
            "drain a spill path, wait until it is empty, and close it; what cannot be read is given up",
        ),
    ):
        action = add_command(
            actions, name, command, help=help, example=f"greenboost spill {name} /mnt/old/greenboost.spill"
        )
        action.add_argument("path", metavar="PATH")
        add_socket(action)


def _list(options: argparse.Namespace) -> int:
    paths: Any = status_of(daemon_socket(options.socket))["spill"]
    if options.json:
        print(json.dumps({"spill": paths}, indent=2))
    elif paths:
        header = ("SPILL PATH", "STATE", "USED", "TOTAL", "WRITTEN", "READ", "ERRORS", "SPEED", "")
        print("\n".join(columns([header, *map(_row, paths)])))
    else:
        print("no spill path; add one with 'greenboost spill add PATH:SIZE'")
    return 0


def _row(path: Mapping[str, Any]) -> tuple[str, ...]:
    rate = path["rate_bytes_per_second"]
    notes = []
    if path["encrypted"]:
        notes.append("encrypted")
    if path["weight"] != 1:
        notes.append(f"weight {path['weight']:g}")
    if path["retired_bytes"]:
        notes.append(f"{format_size(path['retired_bytes'])} out of use")
    if path["daily_writes_bytes"] is not None:
        notes.append(
            f"{format_size(path['written_today_bytes'])} of {format_size(path['daily_writes_bytes'])} "
            "written today"
        )
    return (
        path["path"],
        path["state"],
        *(format_size(path[f"{key}_bytes"]) for key in ("used", "total", "written", "read")),
        str(path["errors"]),
        "" if rate is None else f"{rate / 1e9:.2f} GB/s",
        ", ".join(notes),
    )


def _add(options: argparse.Namespace) -> int:
    given = {key: value for key in _FLAGS if (value := getattr(options, key)) is not None}
    try:
        spec = config.parse_spill(options.path, "PATH")
        how = config.spill_options(given, _FLAGS)
    except config.ConfigError as error:
        raise UsageError(f"spill add: {error}") from None
    ask(
        daemon_socket(options.socket),
        "spill_add",
        timeout=None,
        path=os.fspath(spec.path),
        size=spec.size or 0,
        weight=round(how.weight * 1000),
        encrypt=int(how.encrypt),
        daily_writes=how.daily_writes or 0,
        deadline=round(how.deadline * 1000),
        poll=how.poll,
        force=int(options.force),
    )
    return 0


def _drain(options: argparse.Namespace) -> int:
    ask(daemon_socket(options.socket), "spill_drain", path=_absolute(options.path))
    return 0


def _remove(options: argparse.Namespace) -> int:
    # However long it takes; when we are interrupted, the daemon goes on.
    ask(daemon_socket(options.socket), "spill_remove", timeout=None, path=_absolute(options.path))
    return 0


def _absolute(path: str) -> str:
    # The daemon's current directory is another one.
    return os.fspath(Path(os.path.abspath(path)))
