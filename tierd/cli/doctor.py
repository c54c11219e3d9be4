# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost doctor: what this machine offers, and what is missing for what."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .check_gpu import gpu_checks
from .check_machine import machine_checks
from .check_spill import spill_check
from .checks import Check
from .parsers import Commands, add_command

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        help="say what this machine offers and what is missing for what",
        example="greenboost doctor --spill /mnt/nvme",
    )
    parser.add_argument(
        "--spill",
        metavar="PATH",
        action="append",
        default=[],
        type=Path,
        help="measure a spill path: a directory or a file of at least 256 MiB (its content stays) on it; "
        "may be repeated",
    )
    parser.add_argument("--driver", metavar="PATH", help="the CUDA driver (libcuda.so.1) to look at")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def _doctor(options: argparse.Namespace) -> int:
    checks = machine_checks() + gpu_checks(options.driver, os.environ)
    checks += [spill_check(path) for path in options.spill]
    ready = not any(check.blocks for check in checks)
    if options.json:
        print(json.dumps({"ready": ready, "checks": [_as_json(check) for check in checks]}, indent=2))
    else:
        _print(checks)
        print("\nready to run" if ready else "\nnot ready: see what is missing and marked with *")
    return 0 if ready else 1


def _as_json(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "status": check.status,
        "needed": check.needed,
        "found": check.found,
        "advice": check.advice,
        **({"details": dict(check.details)} if check.details else {}),
    }


def _print(checks: Sequence[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        advice = f"; {check.advice}" if check.advice else ""
        mark = "*" if check.blocks else " "
        print(f"{check.status:7}{mark} {check.name:{width}}  {check.found}{advice}")
