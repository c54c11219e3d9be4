# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost status: what the running daemon has where."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from ..model import format_size
from .control import daemon_socket, status_of
from .parsers import Commands, add_command, add_socket, columns

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "status",
        _status,
        help="show what the running daemon has where",
        example="greenboost status --json | jq .tiers.ram.used_bytes",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_socket(parser)


def _status(options: argparse.Namespace) -> int:
    status = status_of(daemon_socket(options.socket))
    print(json.dumps(status, indent=2) if options.json else _text(status))
    return 0


def _text(status: Mapping[str, Any]) -> str:
    lines = [
        f"daemon {status['version']} (pid {status['pid']}) at {status['socket']}, "
        f"chunks of {format_size(status['chunk_bytes'])}"
    ]
    if status["mountpoint"] is not None:
        lines.append(f"view at {status['mountpoint']}")
    rows = [("TIER", "USED", "TOTAL")]
    rows += [
        (name, format_size(tier["used_bytes"]), format_size(tier["total_bytes"]))
        for name, tier in status["tiers"].items()
    ]
    lines += ["", *columns(rows)]
    pressure = status["pressure"]
    if pressure["level"] != "calm" or pressure["returned_bytes"]:
        lines += ["", _pressure(pressure)]
    if status["spill"]:
        paths = [("SPILL PATH", "USED", "TOTAL", "WRITTEN", "READ")]
        paths += [
            (path["path"], *(format_size(path[f"{k}_bytes"]) for k in ("used", "total", "written", "read")))
            for path in status["spill"]
        ]
        lines += ["", *columns(paths)]
    if status["sessions"]:
        header = ("SESSION", "PID", "NAME", "VRAM", "RAM", "NVME", "FOUND", "WAITED FOR")
        lines += ["", *columns([header, *map(_session, status["sessions"])])]
    return "\n".join(lines)


def _pressure(pressure: Mapping[str, Any]) -> str:
    def size(name: str) -> str:
        return format_size(pressure[f"{name}_bytes"])

    now = "not short" if pressure["level"] == "calm" else f"{pressure['level']}, {size('wanted')} wanted back"
    return (
        f"RAM of the system is {now} ({size('available')} available); "
        f"{size('returned')} were given back so far, {size('withheld')} are withheld"
    )


def _session(session: Mapping[str, Any]) -> tuple[str, ...]:
    resident, counters = session["resident_bytes"], session["counters"]
    return (
        str(session["id"]),
        str(session["pid"]),
        session["name"],
        *(format_size(resident[tier]) for tier in ("vram", "ram", "nvme")),
        f"{counters.get('chunk_hits', 0):,}",
        f"{counters.get('chunk_stalls', 0):,}",
    )
