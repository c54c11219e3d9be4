# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger under arbitrary histories and daemons that die: what was written last is what is read."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tierd.ledger import Heir, KnownPath, Ledger, Terms, process_start
from tierd.model import Decisions, SpillOptions
from tierd.nvme.path import Place

TERMS = Terms(2 << 20, 4 << 20, 3)
DEAD = 0x7FFFFFFE  # no process has it: pid_max is less

sessions = st.integers(1, 3)
chunks = st.integers(0, 4)
words = st.integers(0, (1 << 64) - 1)
places = st.one_of(
    st.none(),
    st.builds(Place, st.none(), words),
    st.builds(
        Place,
        st.uuids(),
        st.integers(0, 1 << 30),
        st.integers(0, (1 << 31) - 1).map(lambda n: 2 * n + 1),
        words,
    ),
)


class Daemons(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.folder / "ledger", TERMS)
        self.ledger.take_over(())
        self.heirs: dict[int, Heir] = {}
        self.places: dict[int, dict[int, Place]] = {}
        self.paths: tuple[KnownPath, ...] = ()

    @rule(
        id=sessions,
        committed=st.integers(0, 1 << 26),
        arenas=st.lists(st.integers(1, 99)),
        alive=st.booleans(),
    )
    def session(self, id: int, committed: int, arenas: list[int], alive: bool) -> None:
        pid = os.getpid() if alive else DEAD
        heir = Heir(
            id,
            f"{id:032x}",
            1000,
            pid,
            process_start(os.getpid()),
            "näme",
            committed,
            7,
            1 << 40,
            Decisions("auto", "asked"),
            tuple(arenas),
        )
        self.ledger.session(heir)
        self.heirs[id] = heir
        self.places.setdefault(id, {})

    @rule(id=sessions)
    def end(self, id: int) -> None:
        self.ledger.end(id)
        self.heirs.pop(id, None)
        self.places.pop(id, None)

    @rule(id=sessions, chunk=chunks, place=places)
    def store(self, id: int, chunk: int, place: Place | None) -> None:
        if id in self.heirs:
            self.ledger.store(id, chunk, place)
            self.places[id].pop(chunk, None)
            if place is not None:
                self.places[id][chunk] = place

    @rule(id=sessions, gone=st.lists(chunks))
    def forget(self, id: int, gone: list[int]) -> None:
        self.ledger.forget(id, gone)
        for chunk in gone:
            self.places.get(id, {}).pop(chunk, None)

    @rule(
        names=st.lists(st.text("ab/\udc80", min_size=1), max_size=3),
        daily=st.none() | st.integers(1, 1 << 60),
    )
    def set_paths(self, names: list[str], daily: int | None) -> None:
        options = SpillOptions(encrypt=bool(daily), daily_writes=daily)
        self.paths = tuple(KnownPath(uuid.uuid4(), name, 1 << 40, 3, options, bool(daily)) for name in names)
        self.ledger.set_paths(self.paths)

    @rule(killed=st.booleans())
    def next_daemon(self, killed: bool) -> None:
        """A killed one's files are looked at as they are, as the kernel has them."""
        stays = any(heir.pid != DEAD for heir in self.heirs.values())
        paths = {path.id for path in self.paths}
        if killed:
            copy = Path(tempfile.mkdtemp())
            shutil.copytree(self.folder, copy, dirs_exist_ok=True)
            self.ledger.close()
            shutil.rmtree(self.folder)
            self.folder = copy
        else:
            assert self.ledger.close() == (paths if stays else set())
            assert bool(os.listdir(self.folder)) is stays
        self.ledger = Ledger(self.folder / "ledger", TERMS)
        self.heirs = {id: heir for id, heir in self.heirs.items() if heir.pid != DEAD}
        self.places = {id: self.places[id] for id in self.heirs}
        assert self.ledger.heirs == tuple(self.heirs[id] for id in sorted(self.heirs))
        assert set(self.ledger.paths) == (set(self.paths) if stays else set())
        assert set(self.ledger.orphans) == (set(self.paths) if killed and not stays else set())
        self.paths = self.paths if stays else ()
        self.ledger.take_over(self.paths)

    @invariant()
    def what_was_written_is_read(self) -> None:
        for id in range(1, 4):
            assert self.ledger.chunks(id) == self.places.get(id, {})

    def teardown(self) -> None:
        assert self.ledger.kept
        for id in list(self.heirs):
            self.ledger.end(id)
        assert not self.ledger.close()
        assert os.listdir(self.folder) == []
        os.rmdir(self.folder)


TestDaemons = Daemons.TestCase
TestDaemons.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
