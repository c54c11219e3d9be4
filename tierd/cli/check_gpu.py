# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether there is a driver, a GPU, and a shim that fits them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..model import format_size
from .checks import MISSING, OK, WARNING, Check
from .driverprobe import probe
from .elf import exported_functions
from .errors import UsageError
from .paths import find_driver, find_shim

__all__ = ["gpu_checks"]

_GIVE_NONE = "give an existing file, or leave it out to have it searched for"


def gpu_checks(driver_flag: str | None, environ: Mapping[str, str]) -> list[Check]:
    shim_check, shim = _shim(environ)
    driver_check, driver = _driver(driver_flag, environ, shim)
    checks = [driver_check]
    if driver is not None:
        checks += _devices(driver)
    checks.append(shim_check)
    if driver is not None and shim is not None:
        checks.append(_exports(driver, shim))
    return checks


def _driver(flag: str | None, environ: Mapping[str, str], shim: Path | None) -> tuple[Check, Path | None]:
    try:
        driver = find_driver(flag, environ, shim=shim)
    except UsageError as error:
        found, _, advice = str(error).partition("; ")
        return Check("driver", MISSING, found, advice or _GIVE_NONE, needed=True), None
    return Check("driver", OK, str(driver), needed=True, details={"path": str(driver)}), driver


def _devices(driver: Path) -> list[Check]:
    answer = probe(driver)
    details: dict[str, object] = {
        "cuda_version": answer.version,
        "devices": [{"name": device.name, "total_bytes": device.total_bytes} for device in answer.devices],
    }
    if answer.error is not None or not answer.devices:
        return [
            Check(
                "gpu",
                MISSING,
                answer.error or "the driver knows no device",
                "nothing runs without a device: see 'nvidia-smi', or 'tools/demo' for machines without a GPU",
                needed=True,
                details=details,
            )
        ]
    names = ", ".join(f"{device.name} ({format_size(device.total_bytes)})" for device in answer.devices)
    return [Check("gpu", OK, f"{names}, CUDA {answer.version}", needed=True, details=details)]


def _shim(environ: Mapping[str, str]) -> tuple[Check, Path | None]:
    try:
        shim = find_shim(environ)
    except UsageError as error:
        found, _, advice = str(error).partition("; ")
        return Check("shim", MISSING, found, advice or _GIVE_NONE, needed=True), None
    return Check("shim", OK, str(shim), needed=True, details={"path": str(shim)}), shim


def _exports(driver: Path, shim: Path) -> Check:
    try:
        lacking = sorted(exported_functions(driver) - exported_functions(shim))
    except (OSError, ValueError) as error:
        return Check("shim_exports", WARNING, str(error), "the shim could not be compared with the driver")
    details: dict[str, object] = {"lacking": lacking}
    if not lacking:
        return Check("shim_exports", OK, "the shim has every function of the driver", details=details)
    some = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
    return Check(
        "shim_exports",
        WARNING,
        f"the driver has {len(lacking)} functions that the shim lacks: {some}",
        "a program linked with them fails to start: rebuild the shim against this driver, "
        f"'make -C shim DRIVER={driver}'",
        details=details,
    )
