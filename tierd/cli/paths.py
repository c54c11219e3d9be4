# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the CUDA driver, NVML and what stands before them are on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import UsageError

__all__ = ["DRIVER_NAME", "SHIM_NAME", "find_driver", "find_nvml", "find_shim"]

DRIVER_NAME = "libcuda.so.1"
SHIM_NAME = "libgreenboost_cuda.so"
_NVML_NAME = "libnvidia-ml.so.1"
_NVML_SHIM_NAME = "libgreenboost_nvml.so"

_WELL_KNOWN = (
    "/usr/local/nvidia/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
)
_LDCONFIG_LINE = re.compile(r"\s*(\S+) \(([^)]*)\) => (/.*)")


def find_shim(environ: Mapping[str, str]) -> Path:
    """The shim: GREENBOOST_SHIM, else beside the package, else in a checkout. Raises UsageError."""
    named = environ.get("GREENBOOST_SHIM")
    if named:
        if not os.path.isfile(named):
            raise UsageError(f"GREENBOOST_SHIM: there is no file {named}")
        return Path(named).resolve()
    package = Path(__file__).resolve().parent.parent
    candidates = (package / "lib" / SHIM_NAME, package.parent / "shim" / "build" / SHIM_NAME)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UsageError(
        f"the shim {SHIM_NAME} is not built; run 'make -C shim' or set GREENBOOST_SHIM to its path"
    )


def find_driver(flag: str | None, environ: Mapping[str, str], *, shim: Path | None = None) -> Path:
    """The real path of the CUDA driver, which is never the shim.

    `flag` and GREENBOOST_CUDA_DRIVER must be right if given; otherwise the first of the library
    path, the linker's cache and well-known directories counts. Raises UsageError.
    """
    for source, named in (
        ("--driver", flag),
        ("GREENBOOST_CUDA_DRIVER", environ.get("GREENBOOST_CUDA_DRIVER")),
    ):
        if not named:
            continue
        if not os.path.isfile(named):
            raise UsageError(f"{source}: there is no file {named}")
        if _is_shim(Path(named), shim):
            raise UsageError(f"{source}: {named} is GreenBoost's own shim; give the real {DRIVER_NAME}")
        return Path(named).resolve()
    for candidate in _candidates(DRIVER_NAME, environ):
        if candidate.is_file() and not _is_shim(candidate, shim):
            return candidate.resolve()
    raise UsageError(
        f"no CUDA driver: {DRIVER_NAME} is not in LD_LIBRARY_PATH, the linker's cache or the usual places; "
        "install NVIDIA's driver, give --driver PATH, or see 'tools/demo' for machines without a GPU"
    )


def find_nvml(shim: Path, environ: Mapping[str, str]) -> tuple[Path, Path] | None:
    """What stands before NVML, and the real one; None if either is not there."""
    ours = shim.with_name(_NVML_SHIM_NAME)
    if not ours.is_file():
        return None
    for candidate in _candidates(_NVML_NAME, environ):
        if candidate.is_file() and candidate.resolve().name != _NVML_SHIM_NAME:
            return ours, candidate.resolve()
    return None


def _candidates(name: str, environ: Mapping[str, str]) -> Iterator[Path]:
    for directory in environ.get("LD_LIBRARY_PATH", "").split(":"):
        # The toolkit's stubs directory is for linking: its library refuses to run.
        if directory and Path(directory).name != "stubs":
            yield Path(directory, name)
    yield from _linker_cache(name)
    for directory in _WELL_KNOWN:
        yield Path(directory, name)


def _linker_cache(name: str) -> Iterator[Path]:
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if ldconfig is None:
        return
    listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        match = _LDCONFIG_LINE.fullmatch(line)
        if match and match[1] == name and "x86-64" in match[2]:
            yield Path(match[3])


def _is_shim(path: Path, shim: Path | None) -> bool:
    # By name too: a copy of the shim that is installed elsewhere is as wrong as this one.
    return path.resolve().name == SHIM_NAME or (shim is not None and os.path.samefile(path, shim))
