# SPDX-License-Identifier: GPL-2.0-or-later
"""Arenas: sealed, shared, bounded, and gone when closed."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.huge_pages import arenas_in_huge_pages, needs_huge_pages
from tierd.arena import HUGE_PAGE, Arena, ArenaError, ArenaPool, _exporter, open_pool

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

CHUNK = 2 << 20
MADV_COLLAPSE = 25


def test_an_arena_is_shared_zeroed_and_divided_into_slots() -> None:
    one = Arena(7, 4 * CHUNK, CHUNK)
    try:
        assert (one.id, one.size, one.chunk, one.slots) == (7, 4 * CHUNK, CHUNK, 4)
        assert not os.get_inheritable(one.fd)
        one.populate()
        assert os.fstat(one.fd).st_blocks * 512 == one.size
        with mmap.mmap(one.fd, one.size) as other:
            assert other[:4096] == bytes(4096)
            other[CHUNK : CHUNK + 5] = b"hello"
        assert bytes(one.memory[CHUNK : CHUNK + 5]) == b"hello"
    finally:
        one.close()


@needs_huge_pages
def test_its_pages_are_huge_whatever_is_set_for_shared_memory() -> None:
    """All but a few, as some memory may be in pieces."""
    one = Arena(1, 64 * CHUNK, CHUNK)
    try:
        one.populate()
        assert arenas_in_huge_pages(Path("/proc/self/smaps").read_text()) > 0.5
        assert bytes(one.memory) == bytes(one.size)
    finally:
        one.close()


@needs_huge_pages
def test_one_that_is_refused_does_not_keep_others_from_being_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel refuses where it finds no room: all that is behind it in the same call."""
    advise = Arena._advise

    def refuse(self: Arena, begin: int, end: int, advice: int) -> int:
        if advice == MADV_COLLAPSE and (end - begin > HUGE_PAGE or begin == 8 * HUGE_PAGE):
            return errno.ENOMEM
        return advise(self, begin, end, advice)

    monkeypatch.setattr(Arena, "_advise", refuse)
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", -1)
    one = Arena(1, 64 * CHUNK, CHUNK)
    try:
        one.populate()
        assert 0.5 < arenas_in_huge_pages(Path("/proc/self/smaps").read_text()) < 1
        assert os.fstat(one.fd).st_blocks * 512 == one.size
    finally:
        one.close()


def test_where_huge_pages_are_refused_it_has_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a kernel that has none, or where memory is in pieces."""
    monkeypatch.setattr("tierd.arena._MADV_COLLAPSE", -1)
    one = Arena(1, 4 * CHUNK, CHUNK)
    try:
        one.populate()
        assert os.fstat(one.fd).st_blocks * 512 == one.size
    finally:
        one.close()


def test_nobody_can_change_its_size_or_its_seals() -> None:
    one = Arena(1, CHUNK, CHUNK)
    try:
        for size in (0, 2 * CHUNK):
            with pytest.raises(PermissionError):
                os.ftruncate(one.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(one.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        one.close()


def test_closed_exactly_once() -> None:
    one = Arena(1, CHUNK, CHUNK)
    one.close()
    with pytest.raises(ValueError, match="arena 1 is closed already"):
        one.close()


def test_an_older_kernel_has_no_exec_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    Arena(1, CHUNK, CHUNK).close()


def test_what_the_kernel_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", full)
    with pytest.raises(ArenaError, match="no arena of 2097152 bytes: Too many open files"):
        Arena(1, CHUNK, CHUNK)


def test_a_memfd_that_cannot_be_mapped_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(ArenaError, match="Cannot allocate memory"):
        Arena(1, CHUNK, CHUNK)


def test_what_cannot_be_mapped_is_closed() -> None:
    with pytest.raises(ArenaError, match="no arena of 2097152 bytes: No such device"):
        Arena(1, CHUNK, CHUNK, lambda *_: os.eventfd(0))


def test_the_pool_keeps_its_limit() -> None:
    with open_pool(limit=2, arena_bytes=2 * CHUNK, chunk=CHUNK) as pool:
        first, second = pool.create(1), pool.create(2)
        with pytest.raises(ArenaError, match="all 2 arenas exist already"):
            pool.create(3)
        pool.close(first)
        assert list(pool) == [second]
        third = pool.create(3)
        assert len(pool) == 2
    assert second.fd == third.fd == -1
    assert len(pool) == 0


def test_a_pool_of_nothing() -> None:
    with pytest.raises(ArenaError, match="all 0 arenas"):
        ArenaPool(limit=0, arena_bytes=CHUNK, chunk=CHUNK).create(1)


def test_a_name_does_not_tell_who_made_a_buffer() -> None:
    """Whoever has a DMA-BUF can name it, over several lines if they like."""
    head = "pos:\t0\nflags:\t02\nsize:\t4096\ncount:\t1\n"
    assert _exporter(StringIO(f"{head}exp_name:\tgreenboost\nname:\ta\n")) == "greenboost"
    spoofed = f"{head}exp_name:\tudmabuf\nname:\ta\nexp_name:\tgreenboost\n"
    assert _exporter(StringIO(spoofed)) == "udmabuf"
