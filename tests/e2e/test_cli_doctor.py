# SPDX-License-Identifier: GPL-2.0-or-later
"""greenboost doctor, with drivers and shims of the test's making."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cli_harness import DRIVER_SOURCE, Cli
from tests.huge_pages import needs_huge_pages
from tierd.cli.check_machine import machine_checks

NAMES = [
    "kernel_module",
    "arena_source",
    "io_uring",
    "io_uring_extension",
    "fuse",
    "huge_pages",
    "memlock",
    "ram",
    "driver",
]


@pytest.fixture
def cli() -> Iterator[Cli]:
    with tempfile.TemporaryDirectory(prefix="gb-") as home:
        yield Cli(Path(home))


def checks(cli: Cli, *arguments: str, status: int, **environ: str) -> dict[str, dict[str, Any]]:
    done = cli("doctor", "--json", *arguments, environ=environ)
    assert done.returncode == status, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == ["ready", "checks"]
    assert answer["ready"] is (status == 0)
    for check in answer["checks"]:
        assert set(check) - {"details"} == {"name", "status", "needed", "found", "advice"}
        assert check["status"] in ("ok", "missing", "warning")
        assert bool(check["advice"]) is (check["status"] != "ok")
    return {check["name"]: check for check in answer["checks"]}


def test_ready(cli: Cli) -> None:
    shim = cli.library("all.so", DRIVER_SOURCE.replace("INIT", "0"))
    found = checks(cli, status=0, GREENBOOST_SHIM=str(shim))
    assert list(found) == [*NAMES, "gpu", "shim", "shim_exports"]
    assert found["driver"]["details"] == {"path": str(cli.driver)}
    assert found["gpu"]["details"] == {
        "cuda_version": "12.8",
        "devices": [{"name": "Test Device", "total_bytes": 24 << 30}],
    }
    assert found["shim_exports"]["status"] == "ok"
    assert found["ram"]["details"]["available_bytes"] <= found["ram"]["details"]["total_bytes"]


def test_shim_that_lacks_functions_is_a_warning(cli: Cli) -> None:
    found = checks(cli, status=0)
    assert found["shim_exports"]["status"] == "warning"
    assert found["shim_exports"]["details"]["lacking"] == [
        "cuDeviceGet", "cuDeviceGetCount", "cuDeviceGetName", "cuDeviceTotalMem_v2", "cuDriverGetVersion",
        "cuGetErrorName",
    ]  # fmt: skip


@needs_huge_pages
def test_huge_pages_are_found_by_trying(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks(cli, status=0)["huge_pages"]
    assert found["status"] == "ok"
    assert found["details"]["huge_bytes"] > found["details"]["tried_bytes"] / 2
    monkeypatch.setattr("tierd.arena._MADV_COLLAPSE", -1)  # as if all were refused
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", -1)
    (refused,) = (check for check in machine_checks() if check.name == "huge_pages")
    assert (refused.status, refused.found) == ("warning", "0 B of 64.0 MiB of RAM are in pages of 2 MiB")
    assert "5 times" in refused.advice


def test_text(cli: Cli) -> None:
    done = cli("doctor")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == "ready to run"
    assert all(line.split()[0] in ("ok", "missing", "warning") for line in lines[:-2])


def test_missing_driver(cli: Cli) -> None:
    found = checks(cli, "--driver", "none", status=1)
    assert found["driver"]["status"] == "missing"
    assert found["driver"]["needed"]
    assert "gpu" not in found


def test_missing_shim(cli: Cli) -> None:
    found = checks(cli, status=1, GREENBOOST_SHIM="none")
    assert found["shim"]["found"] == "GREENBOOST_SHIM: there is no file none"


def test_driver_without_device(cli: Cli) -> None:
    driver = cli.library("broken.so", DRIVER_SOURCE.replace("INIT", "100"))
    found = checks(cli, "--driver", str(driver), status=1)
    assert found["gpu"]["found"] == "cuInit: CUDA_ERROR_NO_DEVICE"
    assert found["gpu"]["details"]["cuda_version"] == "12.8"


def test_driver_that_crashes(cli: Cli) -> None:
    driver = cli.library("crash.so", DRIVER_SOURCE.replace("INIT", "*(volatile int *)0"))
    found = checks(cli, "--driver", str(driver), status=1)
    assert "-11" in found["gpu"]["found"]


def test_driver_that_is_no_library(cli: Cli) -> None:
    driver = cli.home / "text.so"
    driver.write_text("not a library")
    found = checks(cli, "--driver", str(driver), status=1)
    assert "invalid ELF header" in found["gpu"]["found"] or "too short" in found["gpu"]["found"]
    assert found["shim_exports"]["status"] == "warning"


def test_spill_path_is_measured(cli: Cli, disk: Path) -> None:
    found = checks(cli, "--spill", str(disk), status=0)["spill"]
    assert found["status"] == "ok"
    assert found["details"]["bytes"] == 256 << 20
    assert found["details"]["write_bytes_per_second"] > 0
    assert found["details"]["read_bytes_per_second"] > 0
    assert os.listdir(disk) == []
    assert cli.left_behind() == []


def test_spill_path_that_is_missing(cli: Cli) -> None:
    found = checks(cli, "--spill", "none/spill", status=0)["spill"]
    assert found["status"] == "missing"
    assert found["found"] == "none/spill: no such file or directory"
    assert "create none first" in found["advice"]


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: file systems of RAM are NOT tested")
@pytest.mark.parametrize(("kind", "status"), [("tmpfs", "warning"), ("ramfs", "missing")])
def test_spill_path_in_ram(cli: Cli, kind: str, status: str) -> None:
    disk = cli.home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", kind, "test", disk], check=True)
    try:
        found = checks(cli, "--spill", str(disk), status=0)["spill"]
        # Kernels before 6.6 have no O_DIRECT on tmpfs.
        assert found["status"] == status or (kind == "tmpfs" and "O_DIRECT" in found["found"])
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)
