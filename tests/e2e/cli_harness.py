# SPDX-License-Identifier: GPL-2.0-or-later
"""The greenboost command as tests run it: on its own temporary directory, looked over afterwards."""

from __future__ import annotations

import functools
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["DRIVER_SOURCE", "ROOT", "TIERS", "Cli", "cli_with_socket", "refused", "wait_gone"]

ROOT = Path(__file__).resolve().parents[2]
TIERS = ("--ram", "16MiB", "--chunk", "2MiB")
"""Flags of a small daemon without a spill path."""

_PATIENCE = 60
"""Seconds after which a command hangs. Nothing is timed by it."""

DRIVER_SOURCE = """
#include <string.h>
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
int cuInit(unsigned f) { (void)f; return INIT; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *s, int n, int d) { (void)d; strncpy(s, "Test Device", n); return 0; }
int cuDeviceTotalMem_v2(unsigned long *b, int d) { (void)d; *b = 24ul << 30; return 0; }
int cuGetErrorName(int e, const char **s) { (void)e; *s = "CUDA_ERROR_NO_DEVICE"; return 0; }
"""
"""A CUDA driver with one device, as far as doctor asks; INIT is what cuInit returns."""


@functools.cache
def _compiled(source: str) -> bytes:
    """The shared library of this source in C, made once for all tests that have it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "library.so")
        command = ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-o", str(path), "-"]
        subprocess.run(command, input=source, text=True, check=True)
        return path.read_bytes()


class Cli:
    """greenboost with a shim and a driver of the test's; `tmp` is its TMPDIR, `home` for files."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.tmp = home / "tmp"
        self.tmp.mkdir()
        self.shim = self.library("shim.so", "int cuInit(unsigned f) { (void)f; return 0; }")
        self.driver = self.library("libcuda.so.1", DRIVER_SOURCE.replace("INIT", "0"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GREENBOOST_")}
        self.environ = {
            **kept,
            "TMPDIR": str(self.tmp),
            "PYTHONPATH": str(ROOT),
            "GREENBOOST_SHIM": str(self.shim),
            "GREENBOOST_CUDA_DRIVER": str(self.driver),
            # Never the machine's own daemon.
            "GREENBOOST_SOCKET": str(home / "no-daemon"),
        }

    def library(self, name: str, source: str) -> Path:
        path = self.home / name
        path.write_bytes(_compiled(source))
        return path

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "tierd.cli", *map(str, arguments)]

    def __call__(
        self, *arguments: str | Path, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.environ, **(environ or {})},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def serving(self, *flags: str) -> Iterator[subprocess.Popen[str]]:
        """A daemon at GREENBOOST_SOCKET that serves, as it tells a service manager; ended by SIGTERM."""
        address = self.tmp / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            manager.settimeout(_PATIENCE)
            self.environ["NOTIFY_SOCKET"] = str(address)
            with self.start("daemon", "--config", "/dev/null", *flags) as daemon:
                try:
                    assert manager.recv(100) == b"READY=1"
                    yield daemon
                finally:
                    daemon.terminate()
                    daemon.wait(_PATIENCE)
        del self.environ["NOTIFY_SOCKET"]
        address.unlink()

    def left_behind(self, expected: Sequence[str] = ()) -> list[str]:
        """What of it is still there: temporary files, mounts, processes, and files not `expected`."""
        known = {"tmp", "shim.so", "libcuda.so.1", *expected}
        left = [str(path) for path in self.tmp.rglob("*")]
        left += [str(path) for path in self.home.iterdir() if path.name not in known]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        left += [line for line in mounts if str(self.home) in line]
        return left + self._processes()

    def _processes(self) -> list[str]:
        found = []
        for directory in Path("/proc").iterdir():
            if not directory.name.isdigit() or int(directory.name) == os.getpid():
                continue
            try:
                variables = (directory / "environ").read_bytes()
                command = (directory / "cmdline").read_bytes()
            except OSError:
                continue  # it ended, or is another user's
            if f"TMPDIR={self.tmp}".encode() in variables and command:
                found.append(command.replace(b"\0", b" ").decode())
        return found


@contextmanager
def cli_with_socket() -> Iterator[Cli]:
    """One whose commands ask the daemon that serving() starts."""
    # pytest's own directories are too deep for a socket.
    with tempfile.TemporaryDirectory(prefix="gb-") as home:
        cli = Cli(Path(home))
        cli.environ["GREENBOOST_SOCKET"] = str(cli.home / "d.sock")
        yield cli


def refused(done: subprocess.CompletedProcess[str], status: int, says: str) -> None:
    """The command ended with this status and one line that says so, and did nothing else."""
    assert done.returncode == status, done.stderr
    assert re.fullmatch(r"greenboost: [^\n]+\n", done.stderr), done.stderr
    assert says in done.stderr
    assert done.stdout == ""


def children_of(pid: int) -> list[int]:
    """The processes that its main thread started and that are there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_gone(pid: int) -> None:
    """Wait until process `pid` has ended; at once if there is none."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([process], [], [], _PATIENCE)
        assert ready, f"process {pid} does not end"
    finally:
        os.close(process)
