# SPDX-License-Identifier: GPL-2.0-or-later
"""A ledger that cannot be had: whoever waits for the next daemon finds all of it another time."""

from __future__ import annotations

import fcntl
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tierd import ledger
from tierd.ledger import Heir, Ledger, Terms, open_ledger, process_start
from tierd.nvme.path import Place
from tierd.nvme.spillfile import open_spill_files
from tierd.nvme.spillset import SpillSet
from tierd.startup import StartupError

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

TERMS = Terms(2 << 20, 4 << 20, 3)
HEIR = Heir(1, "0" * 32, 1000, os.getpid(), process_start(os.getpid()), "test", 3, arenas=(1,))
PLACE = Place(None, 7)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A ledger with HEIR, left by a daemon; at the end it is still there and says the same."""
    file = tmp_path / "ledger"
    last = Ledger(file, TERMS)
    last.take_over(())
    last.session(HEIR)
    last.store(1, 5, PLACE)
    last.close()
    yield file
    following = Ledger(file, TERMS)
    assert following.heirs == (HEIR,)
    assert following.chunks(1) == {5: PLACE}
    following.take_over(())
    following.end(1)
    following.close()
    assert os.listdir(tmp_path) == []


@contextmanager
def no_room(file: Path) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def in_use(file: Path) -> Iterator[None]:
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.close()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    fd = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [(no_room, "disk I/O error"), (in_use, "database is locked"), (locked, "another daemon has it")],
)
def test_a_start_that_cannot_have_it_leaves_it(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Path], AbstractContextManager[None]],
    said: str,
) -> None:
    monkeypatch.setattr(ledger, "_LOCK_PATIENCE", 0)
    monkeypatch.setattr(ledger, "_BUSY_PATIENCE", 0)
    with trouble(file), pytest.raises(StartupError, match=said), open_ledger(file, TERMS) as following:
        following.take_over(())


def test_what_is_another_daemons_by_now_is_not_removed(tmp_path: Path) -> None:
    """Somebody has removed the socket and the ledger of one that lives."""
    file = tmp_path / "ledger"
    first = Ledger(file, TERMS)
    for name in os.listdir(tmp_path):
        (tmp_path / name).unlink()
    second = Ledger(file, TERMS)
    second.take_over(())
    second.session(HEIR)
    first.close()
    second.close()
    third = Ledger(file, TERMS)
    assert third.heirs == (HEIR,)
    third.end(1)
    third.close()


def test_one_that_is_given_up_stays_open_for_rings_to_come(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger", TERMS) as it:
        it.take_over(())
        before = os.fstat(it.fd)
        with no_room(tmp_path):
            it.session(HEIR)
        assert not it.kept
        assert os.listdir(tmp_path) == []
        assert os.path.samestat(os.fstat(it.fd), before)


def test_rings_keep_the_lock_of_a_daemon_that_died(tmp_path: Path) -> None:
    """A directory's file has no name by which the next daemon could wait for the last one's transfers."""
    (tmp_path / "spill").mkdir()
    last = Ledger(tmp_path / "ledger", TERMS)
    last.take_over(())
    last.session(HEIR)
    files = open_spill_files([(str(tmp_path / "spill"), 3 << 20)], TERMS.chunk)
    with SpillSet(files, chunk=TERMS.chunk, hold=last.fd):
        last.close()
        with pytest.raises(BlockingIOError), locked(tmp_path / "ledger"):
            pass
    following = Ledger(tmp_path / "ledger", TERMS)  # waits for the kernel to take the ring apart
    assert following.heirs == (HEIR,)
    following.end(1)
    following.close()
