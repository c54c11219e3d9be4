# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices that fail, for tests in the guest. Each is gone when its `with` is over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECTOR = 512
_NULL_BLK = Path("/sys/kernel/config/nullb")


def command(*words: str) -> str:
    """Its output; raises CalledProcessError."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def sectors(device: str) -> int:
    return int(command("blockdev", "--getsz", device))


class Mapped:
    """A device-mapper device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/dev/mapper/{name}"

    def reload(self, target: str, under: str, parameters: str) -> None:
        """Another table, while the device is in use: `target` over all of the device `under`."""
        command("dmsetup", "suspend", "--noflush", self.name)
        try:
            command("dmsetup", "load", self.name, "--table", _table(target, under, parameters))
        finally:
            command("dmsetup", "resume", self.name)


def _table(target: str, under: str, parameters: str) -> str:
    return f"0 {sectors(under)} {target} {parameters}".strip()


@contextmanager
def mapped(target: str, under: str, parameters: str = "", name: str = "faulty") -> Iterator[Mapped]:
    """A device as large as `under`. `parameters` are the target's, as dmsetup takes them.

    mapped("flakey", "/dev/tier0", "/dev/tier0 0 0 1000 1 error_writes") fails every write,
    mapped("delay", "/dev/tier0", "/dev/tier0 0 200") takes 200 ms longer, mapped("error", "/dev/tier0")
    fails everything.
    """
    command("modprobe", "dm-mod")
    command("dmsetup", "create", name, "--table", _table(target, under, parameters))
    try:
        yield Mapped(name)
    finally:
        command("dmsetup", "remove", "--retry", name)


@contextmanager
def null_blk(size_mib: int, name: str = "faulty", **attributes: str | int) -> Iterator[tuple[str, Path]]:
    """A null_blk device that keeps what is written; its path, and where its attributes are.

    `attributes` are those of Documentation/block/null_blk.rst, for example completion_nsec. Sectors
    fail once "+FIRST-LAST" is written to the attribute badblocks, and no longer after "-FIRST-LAST".
    """
    command("modprobe", "null_blk", "nr_devices=0")
    if not _NULL_BLK.exists():
        command("mount", "-t", "configfs", "configfs", "/sys/kernel/config")
    place = _NULL_BLK / name
    before = set(os.listdir("/sys/block"))
    place.mkdir()
    try:
        for attribute, value in {"size": size_mib, "memory_backed": 1, **attributes}.items():
            (place / attribute).write_text(str(value))
        (place / "power").write_text("1")
        # Named by an index here and by the directory there, depending on the kernel.
        [block] = set(os.listdir("/sys/block")) - before
        yield f"/dev/{block}", place
    finally:
        place.rmdir()
