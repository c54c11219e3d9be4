# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the ring share: memory, files without a name, and devices that wait for the test."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from tierd.nvme.ring import Ring

PAGE = 4096
MIB = 1 << 20


def mapped_memory() -> Iterator[memoryview]:
    """16 MiB, for pytest.fixture()."""
    with mmap.mmap(-1, 16 * MIB) as mapping:
        view = memoryview(mapping)
        yield view
        view.release()  # fails while the ring has it


@contextmanager
def scratch(directory: Path, flags: int = 0) -> Iterator[int]:
    """An empty file without a name."""
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


class Pipe:
    """A pipe whose read end is in a ring: a read lasts until somebody writes."""

    def __init__(self, ring: Ring) -> None:
        self._read, self._write = os.pipe()
        self.file = ring.add_file(self._read)

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._read)
        os.close(self._write)  # a read that still waits ends here, so a test that fails ends too

    def send(self, content: bytes) -> None:
        assert os.write(self._write, content) == len(content)

    def left(self) -> bytes:
        """What nobody read."""
        os.set_blocking(self._read, False)
        try:
            return os.read(self._read, MIB)
        except BlockingIOError:
            return b""
        finally:
            os.set_blocking(self._read, True)


class FullPipe:
    """A full pipe whose write end is in a ring: a write lasts until somebody reads."""

    def __init__(self, ring: Ring) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self.capacity = 0
        try:
            while True:
                self.capacity += os.write(self._write, bytes(PAGE))
        except BlockingIOError:
            pass
        os.set_blocking(self._write, True)  # or a transfer would fail in place of waiting
        self.file = ring.add_file(self._write)

    def __enter__(self) -> FullPipe:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)

    @property
    def descriptor(self) -> int:
        return self._write

    def receive(self, length: int) -> bytes:
        """Takes bytes out, those that filled it first."""
        content = os.read(self._read, length)
        assert len(content) == length
        return content

    def drain(self) -> bytes:
        """Everything that is in it now."""
        os.set_blocking(self._read, False)
        content = b""
        try:
            while piece := os.read(self._read, MIB):
                content += piece
        except BlockingIOError:
            pass
        return content


async def round_trips(ring: Ring, fd: int, memory: memoryview, count: int, length: int) -> None:
    """So many requests at once, each of which writes so many bytes and reads them back."""
    contents = [os.urandom(length) for _ in range(count)]
    file, buffer = ring.add_file(fd), ring.add_buffer(memory)

    async def there_and_back(number: int) -> None:
        here = number * length
        memory[here : here + length] = contents[number]
        await ring.write(file, buffer, here, length, here)
        memory[here : here + length] = bytes(length)
        await ring.read(file, buffer, here, length, here)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(there_and_back, number)
    assert memory[: count * length] == b"".join(contents)
