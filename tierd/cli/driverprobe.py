# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask a CUDA driver for its version and devices: python -m tierd.cli.driverprobe PATH.

A program of its own, because a driver that is loaded stays loaded, may crash and may hang. Prints
one JSON object: version (as cuDriverGetVersion gives it), devices ({name, total_bytes}), and error:
null or which call failed how.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Device", "DriverAnswer", "probe"]

_TIMEOUT = 60.0
"""Seconds: cuInit of a machine with eight GPUs and no persistence daemon takes more than ten."""


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class DriverAnswer:
    version: str | None  #: like "13.0"
    devices: tuple[Device, ...]
    error: str | None


def probe(driver: Path) -> DriverAnswer:
    """Load `driver` in a process of its own and ask it. Does not raise: errors are the answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tierd.cli.driverprobe", str(driver)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return DriverAnswer(None, (), f"it does not answer within {_TIMEOUT:.0f} s")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines()
        return DriverAnswer(None, (), said[-1] if said else f"asking it ended with status {done.returncode}")
    number = answer["version"]
    return DriverAnswer(
        f"{number // 1000}.{number % 1000 // 10}" if number else None,
        tuple(Device(device["name"], device["total_bytes"]) for device in answer["devices"]),
        answer["error"],
    )


class _CallError(Exception):
    """A driver call that did not return CUDA_SUCCESS."""


def _ask(path: str) -> dict[str, object]:
    answer: dict[str, object] = {"version": None, "devices": [], "error": None}
    try:
        library = ctypes.CDLL(path)
        version, count = ctypes.c_int(), ctypes.c_int()
        _call(library, "cuDriverGetVersion", ctypes.byref(version))
        answer["version"] = version.value
        _call(library, "cuInit", 0)
        _call(library, "cuDeviceGetCount", ctypes.byref(count))
        answer["devices"] = [_device(library, number) for number in range(count.value)]
    except (OSError, AttributeError, _CallError) as error:
        answer["error"] = str(error)
    return answer


def _device(library: ctypes.CDLL, number: int) -> dict[str, object]:
    device, total, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGet", ctypes.byref(device), number)
    _call(library, "cuDeviceGetName", name, len(name), device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
    return {"name": name.value.decode(errors="replace"), "total_bytes": total.value}


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    status = getattr(library, function)(*arguments)
    if status == 0:
        return
    text = ctypes.c_char_p()
    known = library.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value
    raise _CallError(f"{function}: {text.value.decode() if known and text.value else f'error {status}'}")


if __name__ == "__main__":
    print(json.dumps(_ask(sys.argv[1])))
