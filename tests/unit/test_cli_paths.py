# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding the driver and the shim."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tierd.cli import paths
from tierd.cli.elf import exported_functions
from tierd.cli.errors import UsageError
from tierd.cli.paths import DRIVER_NAME, SHIM_NAME, find_driver, find_shim


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose linker cache and usual directories hold no driver."""
    ldconfig = tmp_path / "bin" / "ldconfig"
    ldconfig.parent.mkdir()
    ldconfig.write_text("#!/bin/sh\ncat $(dirname $0)/cache\n")
    ldconfig.chmod(0o755)
    (ldconfig.parent / "cache").write_text("0 libs found in cache\n")
    monkeypatch.setenv("PATH", f"{ldconfig.parent}:/bin:/usr/bin")
    monkeypatch.setattr(paths, "_WELL_KNOWN", (str(tmp_path / "usual"),))


def library(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_flag_before_variable_before_library_path(tmp_path: Path) -> None:
    by_flag, by_variable = library(tmp_path / "flag.so"), library(tmp_path / "variable.so")
    by_path = library(tmp_path / "libs" / DRIVER_NAME)
    environ = {"GREENBOOST_CUDA_DRIVER": str(by_variable), "LD_LIBRARY_PATH": f":{by_path.parent}"}
    assert find_driver(str(by_flag), environ) == by_flag
    assert find_driver(None, environ) == by_variable
    del environ["GREENBOOST_CUDA_DRIVER"]
    assert find_driver(None, environ) == by_path


def test_linker_cache_before_usual_directories(tmp_path: Path) -> None:
    usual = library(tmp_path / "usual" / DRIVER_NAME)
    assert find_driver(None, {}) == usual
    other, cached = library(tmp_path / "i386" / DRIVER_NAME), library(tmp_path / "cached" / DRIVER_NAME)
    (tmp_path / "bin" / "cache").write_text(
        "3 libs found in cache `/etc/ld.so.cache'\n"
        f"\tlibcuda.so.1 (libc6) => {other}\n"
        f"\tlibcuda.so.1 (libc6,x86-64) => {cached}\n"
        f"\tlibcudart.so.1 (libc6,x86-64) => {usual}\n"
    )
    assert find_driver(None, {}) == cached


def test_links_are_followed(tmp_path: Path) -> None:
    real = library(tmp_path / "libcuda.so.580.159.04")
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / DRIVER_NAME).symlink_to(real)
    assert find_driver(None, {}) == real


def test_the_toolkits_stub_is_no_driver(tmp_path: Path) -> None:
    stub = library(tmp_path / "stubs" / DRIVER_NAME)
    with pytest.raises(UsageError, match="tools/demo"):
        find_driver(None, {"LD_LIBRARY_PATH": str(stub.parent)})


def test_the_shim_is_never_the_driver(tmp_path: Path) -> None:
    shim = library(tmp_path / "shim" / "build" / SHIM_NAME)
    (shim.parent / DRIVER_NAME).symlink_to(SHIM_NAME)
    environ = {"LD_LIBRARY_PATH": str(shim.parent)}
    with pytest.raises(UsageError, match="no CUDA driver"):
        find_driver(None, environ, shim=shim)
    real = library(tmp_path / "usual" / DRIVER_NAME)
    assert find_driver(None, environ, shim=shim) == real
    with pytest.raises(UsageError, match=r"--driver: .* own shim"):
        find_driver(str(shim.parent / DRIVER_NAME), {}, shim=shim)
    renamed = tmp_path / "elsewhere" / DRIVER_NAME
    renamed.parent.mkdir()
    renamed.hardlink_to(shim)
    with pytest.raises(UsageError, match=r"GREENBOOST_CUDA_DRIVER: .* own shim"):
        find_driver(None, {"GREENBOOST_CUDA_DRIVER": str(renamed)}, shim=shim)


@pytest.mark.parametrize(("flag", "environ"), [("none", {}), (None, {"GREENBOOST_CUDA_DRIVER": "none"})])
def test_what_is_named_must_exist(tmp_path: Path, flag: str | None, environ: dict[str, str]) -> None:
    library(tmp_path / "usual" / DRIVER_NAME)
    with pytest.raises(UsageError, match="there is no file none"):
        find_driver(flag, environ)


def test_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = library(tmp_path / "named.so")
    assert find_shim({"GREENBOOST_SHIM": str(named)}) == named
    with pytest.raises(UsageError, match="GREENBOOST_SHIM: there is no file none"):
        find_shim({"GREENBOOST_SHIM": "none"})
    monkeypatch.setattr(paths, "__file__", str(library(tmp_path / "tierd" / "cli" / "paths.py")))
    with pytest.raises(UsageError, match="make -C shim"):
        find_shim({})
    built = library(tmp_path / "shim" / "build" / SHIM_NAME)
    assert find_shim({}) == built
    packaged = library(tmp_path / "tierd" / "lib" / SHIM_NAME)
    assert find_shim({}) == packaged


def test_exported_functions(tmp_path: Path) -> None:
    source = """
        int cuOne(void) { return 1; } static int cuHidden(void) { return 2; }
        int cuObject = 3; extern int cuWanted(void); int other(void) { return cuWanted() + cuHidden(); }
        static void *pick(void) { return cuOne; } int cuPicked(void) __attribute__((ifunc("pick")));
    """
    made = tmp_path / "made.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-o", made, "-"], input=source, text=True, check=True
    )
    assert exported_functions(made) == {"cuOne", "cuPicked"}
    stripped = shutil.copy(made, tmp_path / "stripped.so")
    subprocess.run(["strip", stripped], check=True)
    assert exported_functions(Path(stripped), prefix="") >= {"cuOne", "cuPicked", "other"}


@pytest.mark.parametrize(
    "content", [b"not a library", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 200, b"\x7fELF\x01\x01"]
)
def test_what_is_no_library(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="file: "):
        exported_functions(tmp_path / "file")
