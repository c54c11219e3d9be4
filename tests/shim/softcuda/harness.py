# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests whose body runs in a process of its own, on a device of its own.

The device reads its settings once a process, and some tests are to die of a fault. Modules of tests
import nothing slow, since each body's process imports its module again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from ctypes import c_uint64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import sanitizer
from .driver import Driver

ROOT = Path(__file__).parents[3]
TIMEOUT = 60.0
"""Seconds after which a body counts as hung; none takes two."""

Body = Callable[[Driver], None] | Callable[[str], None]
"""Takes a driver that was started, or, in a parameter called library, the path of one that was not."""


@dataclass(frozen=True)
class Ended:
    """How a body's process ended."""

    status: int  #: negative: the signal that it died of
    stderr: str


def run(library: Path, body: Body, settings: dict[str, str]) -> Ended:
    """Runs a module-level function in a process of its own, with SOFTCUDA_* settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SOFTCUDA_")}
    environment |= {f"SOFTCUDA_{name}": value for name, value in settings.items()}
    # The module's name is pytest's affair; the process runs in the root of the tree.
    module = f"tests.shim.{body.__module__.rpartition('.')[2]}"
    command = [sys.executable, "-m", "tests.shim.softcuda.child", str(library), module, body.__name__]
    with tempfile.TemporaryDirectory(prefix="greenboost-sanitizer-") as folder:
        ended = subprocess.run(
            [*sanitizer.prefix(), *command],
            cwd=ROOT,
            env={**environment, **sanitizer.environment(Path(folder))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT * (5 if sanitizer.SANITIZE else 1),
            check=False,
        )
        assert (found := sanitizer.findings(Path(folder))) == "", found
    return Ended(ended.returncode, ended.stderr)


def on_device(**settings: str) -> Callable[[Body], Callable[[Path], None]]:
    """Makes a body a test: it must end without an exception and without a word on stderr."""

    def decorate(body: Body) -> Callable[[Path], None]:
        def test(softcuda: Path) -> None:
            ended = run(softcuda, body, {"VRAM": "64MiB", **settings})
            assert ended == Ended(0, ""), f"status {ended.status}\n{ended.stderr}"

        # Not functools.wraps: pytest would take the body's parameters for fixtures.
        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        vars(test)["body"] = body
        return test

    return decorate


class Gate:
    """A kernel that waits until it is let go: a stream with work for as long as a test needs."""

    def __init__(self, driver: Driver, name: str = "gate") -> None:
        self.started = threading.Event()
        self.passed = threading.Event()
        self._opened = threading.Event()
        self.function = driver.register(name, self._wait)

    def _wait(self, params: Any) -> None:
        self.started.set()
        assert self._opened.wait(TIMEOUT)
        self.passed.set()

    def open(self) -> None:
        self._opened.set()


class Log:
    """A kernel that notes the number it is launched with."""

    def __init__(self, driver: Driver) -> None:
        self.numbers: list[int] = []
        self._driver = driver
        self._function = driver.register("log", self._note, 8)

    def _note(self, params: Any) -> None:
        self.numbers.append(c_uint64.from_address(params[0]).value)

    def launch(self, number: int, stream: int = 0) -> None:
        self._driver.launch(self._function, c_uint64(number), stream=stream)
