# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver that a buffer is given to: importer/importer.c says what it does when told."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.vm.guest.kmod.device import MIB, attribute, buffer, remove_module, wait_until_unused

pytestmark = pytest.mark.vm

PAGE = 4096
SIZE = 4 * MIB + 19 * PAGE
"""Two pages of 2 MiB, one of 64 KiB and three of 4 KiB."""

_IOC_SYNC = 1 << 30 | 8 << 16 | ord("b") << 8  # DMA_BUF_IOCTL_SYNC
_SYNC_READ, _SYNC_WRITE, _SYNC_END = 1, 2, 4


@dataclass
class Seen:
    entries: int
    bytes: int
    largest: int
    mapped: int
    sum: int
    sum_vmap: int


class Importer:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, *words: object) -> None:
        os.write(self._fd, " ".join(map(str, words)).encode())

    def look(self) -> Seen:
        return Seen(*map(int, os.pread(self._fd, 200, 0).split()))


@contextmanager
def importer() -> Iterator[Importer]:
    fd = os.open("/dev/importer", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield Importer(fd)
    finally:
        os.close(fd)


def test_the_scatterlist_has_all_pages_in_their_order() -> None:
    with buffer(SIZE) as (fd, huge), importer() as device:
        assert huge == 4 * MIB
        device.tell("attach", fd)
        device.tell("map")
        seen = device.look()
        assert seen.bytes == seen.mapped == SIZE
        assert seen.entries == 2 + 1 + 3
        assert seen.largest == 2 * MIB


def test_a_device_reads_what_a_program_wrote_and_the_other_way_round() -> None:
    with buffer(SIZE) as (fd, _), mmap.mmap(fd, SIZE) as memory, importer() as device:
        device.tell("attach", fd)
        device.tell("map")
        for flags in (_SYNC_READ | _SYNC_WRITE, _SYNC_READ | _SYNC_WRITE | _SYNC_END):
            fcntl.ioctl(fd, _IOC_SYNC, struct.pack("=Q", flags))
            memory[:] = b"\x03" * SIZE
        assert device.look().sum == 3 * SIZE
        device.tell("vmap")
        assert device.look().sum_vmap == 3 * SIZE
        device.tell("fill", 9)
        assert memory[:] == b"\x09" * SIZE


def test_an_attachment_keeps_the_buffer() -> None:
    with importer() as device:
        with buffer(SIZE) as (fd, _):
            device.tell("attach", fd)
        assert attribute("used_bytes") == SIZE
        device.tell("vmap")
        device.tell("fill", 1)
        device.tell("map")
        assert device.look().sum == SIZE
        with pytest.raises(subprocess.CalledProcessError):
            remove_module("greenboost")
    wait_until_unused()


def test_devices_come_and_go_independently() -> None:
    with buffer(SIZE) as (fd, _), importer() as first:
        first.tell("attach", fd)
        first.tell("map")
        first.tell("vmap")
        with importer() as second:
            second.tell("attach", fd)
            second.tell("map")
            second.tell("vmap")
            second.tell("fill", 5)
            assert first.look() == second.look()
            second.tell("unmap")
            assert first.look().sum == 5 * SIZE
        # The kernel's mapping is one, and goes with its last user.
        assert first.look().sum_vmap == 5 * SIZE
        first.tell("vunmap")
        first.tell("vmap")
        assert first.look().sum_vmap == 5 * SIZE
        first.tell("unmap")
        first.tell("map")
        assert first.look().sum == 5 * SIZE
