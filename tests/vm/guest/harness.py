# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices that fail, for tests in the guest. Each is gone when its `with` is over."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

SECTOR = 512
_NULL_BLK = Path("/sys/kernel/config/nullb")


def command(*words: str) -> str:
    """Its output; raises CalledProcessError."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def patiently(*words: str) -> None:
    """The same, again and again: Linux 6.1 keeps what was in a ring open for a second more."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not subprocess.run(words, stderr=subprocess.DEVNULL).returncode:
            return
        time.sleep(0.1)
    command(*words)


def sectors(device: str) -> int:
    return int(command("blockdev", "--getsz", device))


class Mapped:
    """A device-mapper device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/dev/mapper/{name}"

    def reload(self, target: str, under: str, parameters: str) -> None:
        """Another table, while the device is in use: `target` over all of the device `under`."""
        self.load(_table(target, under, parameters))

    def load(self, *segments: str) -> None:
        """Another table, while the device is in use, of segments "FIRST LENGTH TARGET PARAMETERS"."""
        self.suspend()
        try:
            table = "\n".join(segments)
            subprocess.run(["dmsetup", "load", self.name], input=table, check=True, text=True)
        finally:
            self.resume()

    def suspend(self) -> None:
        """From now on the device answers nothing."""
        command("dmsetup", "suspend", "--nolockfs", "--noflush", self.name)

    def resume(self) -> None:
        """The device answers again, what has come meanwhile first. May be repeated."""
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
        # Not while it is suspended: what it was asked for would be lost to whoever waits.
        command("dmsetup", "resume", name)
        patiently("dmsetup", "remove", name)


@contextmanager
def linear(under: str) -> Iterator[Mapped]:
    """A device that may be made to fail."""
    with mapped("linear", under, f"{under} 0") as device:
        yield device


@contextmanager
def thin(under: str, room_mib: int, size_mib: int, name: str = "thin") -> Iterator[str]:
    """A thin device of `size_mib` with room for `room_mib`, on `under`; beyond it writes fail with ENOSPC."""
    command("modprobe", "dm-thin-pool")
    meta, data, pool = (f"{name}-{part}" for part in ("meta", "data", "pool"))
    each = 2 * 1024  # sectors of a MiB
    tables = {
        meta: f"0 {2 * each} linear {under} 0",
        data: f"0 {room_mib * each} linear {under} {2 * each}",
        pool: f"0 {room_mib * each} thin-pool /dev/mapper/{meta} /dev/mapper/{data} 128 0 "
        "1 error_if_no_space",
        name: f"0 {size_mib * each} thin /dev/mapper/{pool} 0",
    }
    made: list[str] = []
    try:
        for device, table in tables.items():
            if device == name:
                command("dmsetup", "message", f"/dev/mapper/{pool}", "0", "create_thin 0")
            command("dmsetup", "create", device, "--table", table)
            made.append(device)
        yield f"/dev/mapper/{name}"
    finally:
        for device in reversed(made):
            patiently("dmsetup", "remove", device)


@contextmanager
def pulled_out(tier: str) -> Iterator[Callable[[], object]]:
    """A function that pulls the NVMe device /dev/`tier` out of its slot; it is put back afterwards."""
    link = Path("/dev") / tier
    function = (Path("/sys/block") / os.readlink(link) / "device/device").resolve()
    try:
        yield partial((function / "remove").write_text, "1")
    finally:
        Path("/sys/bus/pci/rescan").write_text("1")
        link.unlink()
        link.symlink_to(_nvme_device(tier))


def _nvme_device(serial: str) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for place in Path("/sys/block").glob("nvme*"):
            with suppress(OSError):  # it comes and goes
                if (place / "device/serial").read_text().strip() == serial and (
                    Path("/dev") / place.name
                ).exists():
                    return place.name
        time.sleep(0.01)
    raise TimeoutError(f"the NVMe device {serial} has not come back")


@contextmanager
def scsi_debug(size_mib: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """A disk in memory, and a function that takes it away."""
    before = set(os.listdir("/sys/block"))
    command("modprobe", "sd_mod")
    command("modprobe", "scsi_debug", f"dev_size_mb={size_mib}", "delay=0")
    try:
        deadline = time.monotonic() + 30
        while not (new := set(os.listdir("/sys/block")) - before) and time.monotonic() < deadline:
            time.sleep(0.01)
        [name] = new
        yield f"/dev/{name}", partial((Path("/sys/block") / name / "device/delete").write_text, "1")
    finally:
        patiently("modprobe", "--remove", "scsi_debug")


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
