# SPDX-License-Identifier: GPL-2.0-or-later
"""What a daemon leaves to the next one: who is served, and in which extents their chunks are.

Applications outlive a daemon that is killed or restarted, and what is in T3 of theirs is then known to
this file alone (docs/decisions/0002-reattach.md). It lies beside the socket and is SQLite's, for a commit
there survives SIGKILL between any two instructions. Nothing is synced: after the machine's end there are no
applications either, which the boot's id tells. Only its user may read it, and of what a path encrypts
nothing is in it.

One writer, trio's thread: a change takes about 15 us. Until the daemon serves, nothing is changed or
removed that somebody may go on with: what is wrong then ends the start, and the next one finds all of it.
From then on a ledger that cannot be written is given up, with a message, and the daemon goes on without:
its applications do not outlive it.

The file is locked (flock) by whoever has it, and every ring of the daemon holds the open file too. So the
lock of one that died is free once its last transfer is over: no arena changes by itself after that.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .filelock import lock_file
from .model import Decisions, SpillOptions
from .nvme.path import Place
from .startup import StartupError

__all__ = ["Heir", "KnownPath", "Ledger", "Terms", "open_ledger", "process_start"]

_log = logging.getLogger(__name__)

_VERSION = 2
_BOOT = Path("/proc/sys/kernel/random/boot_id")

_SUFFIXES = ("", "-wal", "-shm", "-journal")
"""Of the files that SQLite may have of one database."""

_LOCK_PATIENCE = 10.0
"""Seconds to wait for the transfers of a daemon that died."""

_BUSY_PATIENCE = 1.0
"""Seconds to wait for a program that looks at the database."""

_DAMAGED = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""What SQLite says of a file that is no ledger, and will say again: the first of a table that is missing."""

_SCHEMA = """
CREATE TABLE daemon (version INTEGER, boot TEXT, chunk INTEGER, arena INTEGER, arenas INTEGER);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, key TEXT, uid INTEGER, pid INTEGER, started INTEGER, name TEXT,
    committed INTEGER, vram INTEGER, vram_bytes INTEGER, paging TEXT, vram_source TEXT, arenas TEXT
);
CREATE TABLE paths (
    id BLOB PRIMARY KEY, path BLOB, size INTEGER, generation INTEGER, options TEXT, draining INTEGER
);
CREATE TABLE chunks (
    session INTEGER, chunk INTEGER, path BLOB, place INTEGER, generation INTEGER, checksum INTEGER,
    PRIMARY KEY (session, chunk)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """What every session of a daemon was told, and counts on."""

    chunk: int  #: bytes
    arena: int  #: bytes
    arenas: int  #: that there may be


@dataclass(frozen=True, slots=True)
class Heir:
    """A session as the daemon that it was with last left it."""

    id: int
    key: str  #: known to its process and the daemon alone
    uid: int
    pid: int  #: 0 where the kernel would not tell
    started: int  #: when, to tell the process from another with its number; see process_start()
    name: str
    committed: int = 0  #: chunks of all its allocations
    vram: int = 0  #: T1 slots
    vram_bytes: int = 0
    decided: Decisions = field(default_factory=Decisions)
    arenas: tuple[int, ...] = ()

    @property
    def lives(self) -> bool:
        """Whether its process may still run."""
        return _may_run(self.pid, self.started)


@dataclass(frozen=True, slots=True)
class KnownPath:
    """A spill path that the last daemon had open."""

    id: uuid.UUID  #: of its superblock
    path: str
    size: int  #: bytes
    generation: int  #: of its superblock
    options: SpillOptions
    draining: bool = False  #: it was to be emptied


_Change = tuple[str, Sequence[Sequence[object]]]
"""A statement, and the values of each time that it is executed."""


class _NotOurs(Exception):
    """What is there is no ledger that this program has written."""


def process_start(pid: int) -> int:
    """When the process began, in clock ticks since the boot; 0 when there is none, or it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *fields = text[text.rindex(")") + 2 :].split()  # the name before it may have blanks
    # Its first thread is a zombie too while others go on.
    return 0 if state in "ZX" and int(fields[16]) <= 1 else int(fields[18])


def _may_run(pid: int, started: int) -> bool:
    return pid == 0 or process_start(pid) == started


class Ledger:
    """The file of a daemon that serves on `terms`, and what it found there of the one before.

    What belongs to processes that have ended is not found. `heirs`, `paths` and `orphans` are of the moment
    of opening.
    """

    def __init__(self, file: Path | None, terms: Terms) -> None:
        """Without a file nothing is written: nobody outlives the daemon.

        Raises StartupError where there may be heirs and it cannot be told; everything is left as it is.
        """
        self.terms = terms  #: those of the heirs, if there are any
        self.heirs: tuple[Heir, ...] = ()
        self.paths: tuple[KnownPath, ...] = ()
        self.orphans: tuple[KnownPath, ...] = ()  #: paths in which nobody has anything any more
        self.fd = -1  #: the locked file, for every ring to hold, until close(); -1 without a file
        self._known: frozenset[uuid.UUID] = frozenset()  # the paths that are in the file
        self._dead: list[int] = []  # sessions in the file that have ended
        self._file = file
        self._database: sqlite3.Connection | None = None
        if file is None:
            return
        try:
            self._open(file)
        except (OSError, sqlite3.Error) as error:
            self._let_go()
            raise _startup_error(file, error) from error
        except BaseException:
            self._let_go()
            raise
        if not self.heirs:
            try:
                self._forget()
                self._create(file)
            except (OSError, sqlite3.Error) as error:
                self._give_up(error)

    def _open(self, file: Path) -> None:
        """Look at what is there. Raises OSError and sqlite3.Error where that cannot be told."""
        try:
            if self._lock(file):
                self._check_files(file)
                self._read(self._connect(file))
        except _NotOurs as error:
            _log.warning("%s is not used: %s", file, error)
        except sqlite3.Error as error:
            if not _is_damaged(error):
                raise
            _log.warning("%s cannot be read and is not used: %s", file, error)

    def _create(self, file: Path) -> None:
        self._close_file()
        self.fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._connect(file).executescript(f"BEGIN; {_SCHEMA} COMMIT")

    def _lock(self, file: Path) -> bool:
        """Have the file to ourselves; False if there is none."""
        while True:
            try:
                fd = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            except OSError:
                if os.path.islink(file):
                    raise _NotOurs("it is a symbolic link") from None
                if os.lstat(file).st_uid != os.geteuid():
                    raise _NotOurs("it is another user's") from None
                raise
            try:
                if not lock_file(fd, patience=_LOCK_PATIENCE):
                    raise StartupError(
                        f"ledger {file}: another daemon has it, or a device has not ended a transfer of the "
                        "last one's: stop that daemon, or try again when the device answers"
                    )
                with suppress(FileNotFoundError):  # whoever had it removed it at its end
                    if os.path.samestat(os.lstat(file), os.fstat(fd)):
                        self.fd, fd = fd, -1
                        return True
            finally:
                if fd >= 0:
                    os.close(fd)

    def _check_files(self, file: Path) -> None:
        for suffix in _SUFFIXES:
            # SQLite would believe a log that somebody else has put beside it.
            with suppress(FileNotFoundError):
                status = os.lstat(f"{file}{suffix}")
                if (
                    not stat.S_ISREG(status.st_mode)
                    or status.st_uid != os.geteuid()
                    or status.st_mode & 0o077
                ):
                    raise _NotOurs(f"{file}{suffix} is not this daemon's own")

    def _connect(self, file: Path) -> sqlite3.Connection:
        self._database = sqlite3.connect(file, isolation_level=None, timeout=_BUSY_PATIENCE)
        # Ours alone, so no shared memory file; what the kernel has of it is enough.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA journal_mode = WAL")
        return self._database

    def _read(self, database: sqlite3.Connection) -> None:
        try:
            row = database.execute("SELECT * FROM daemon").fetchone()
            if row is None:
                return  # no daemon has served with it
            version, boot, *terms = row
            if version != _VERSION:
                _log.error(
                    "%s is of another version of GreenBoost (%s, this one writes %d): applications of the "
                    "daemon before this one cannot go on",
                    self._file,
                    version,
                    _VERSION,
                )
                return
            last = Terms(*terms)
            rows = database.execute("SELECT * FROM sessions ORDER BY id").fetchall()
            heirs = [_heir(*row) for row in rows]
            alive = [heir for heir in heirs if boot == _boot() and heir.lives]
            paths = [_known_path(*row) for row in database.execute("SELECT * FROM paths")]
        except (ValueError, TypeError) as error:
            raise _NotOurs(str(error)) from error
        for heir in heirs:
            if heir not in alive:
                _log.info("session %d (pid %d) ended while there was no daemon", heir.id, heir.pid)
                self._dead.append(heir.id)
        if alive:
            self.heirs, self.paths = tuple(alive), tuple(paths)
            self._known = frozenset(path.id for path in paths)
            self._keep_terms(last)
        else:
            self.orphans = tuple(paths)

    def take_over(self, paths: Iterable[KnownPath]) -> None:
        """The daemon serves from here on, with these spill paths.

        Raises StartupError where that cannot be written down and there are heirs; nothing has changed then.
        """
        known = tuple(paths)
        if self._database is not None:
            try:
                terms = (_VERSION, _boot(), self.terms.chunk, self.terms.arena, self.terms.arenas)
                changes = [
                    *_end(self._dead),
                    ("DELETE FROM daemon", [()]),
                    ("INSERT INTO daemon VALUES (?, ?, ?, ?, ?)", [terms]),
                    *_put(known),
                ]
                _execute(self._database, changes)
            except (OSError, sqlite3.Error) as error:
                if self.heirs:
                    assert self._file is not None
                    raise _startup_error(self._file, error) from error
                self._give_up(error)
        self._known = frozenset(path.id for path in known)

    def _keep_terms(self, last: Terms) -> None:
        """Whatever the settings are now, those who go on were told others."""
        wanted = self.terms
        self.terms = Terms(
            last.chunk, last.arena, max(last.arenas, wanted.arenas * wanted.arena // last.arena)
        )
        if (last.chunk, last.arena) != (wanted.chunk, wanted.arena):
            _log.warning(
                "chunks stay of %d bytes and arenas of %d, since %d applications go on with them; what the "
                "settings say now is for a daemon that is started when they have ended",
                last.chunk,
                last.arena,
                len(self.heirs),
            )

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _let_go(self) -> None:
        """Close the file and leave it as it is."""
        try:
            self._close_database()
        finally:
            self._close_file()

    def _close_file(self) -> None:
        """After the database: this ends the locks that SQLite has on it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _forget(self) -> None:
        """Remove the file, if it is still the one that was opened, which stays open."""
        assert self._file is not None
        ours = os.fstat(self.fd) if self.fd >= 0 else None
        self._close_database()
        with suppress(FileNotFoundError):
            found = os.lstat(self._file)
            if not stat.S_ISLNK(found.st_mode) and (ours is None or not os.path.samestat(found, ours)):
                return  # another daemon's
        for suffix in _SUFFIXES:
            with suppress(FileNotFoundError):
                os.unlink(f"{self._file}{suffix}")

    def _give_up(self, error: Exception) -> None:
        _log.error("%s cannot be written: applications will not outlive this daemon: %s", self._file, error)
        with suppress(OSError, sqlite3.Error):
            self._forget()

    def close(self) -> frozenset[uuid.UUID]:
        """The spill paths that have to stay as they are, for those who go on with the next daemon.

        The file stays too then. It is removed if there is nobody. Closing twice is allowed.
        """
        if self._database is None:
            self._close_file()
            return frozenset()
        try:
            if any(
                _may_run(pid, started)
                for pid, started in self._database.execute("SELECT pid, started FROM sessions")
            ):
                _log.info("applications wait for the next daemon; what they have on NVMe stays for them")
                return self._known
            self._forget()
        except (OSError, sqlite3.Error) as error:
            _log.error("%s cannot be read, and stays for the next daemon: %s", self._file, error)
            return self._known
        finally:
            with suppress(OSError, sqlite3.Error):
                self._let_go()
        return frozenset()

    # Changes

    def _change(self, sql: str, values: Sequence[object]) -> None:
        if self._database is None:
            return
        try:
            self._database.execute(sql, values)
        except sqlite3.Error as error:
            self._give_up(error)

    def _change_many(self, changes: Iterable[_Change]) -> None:
        """All of them or none."""
        if self._database is None:
            return
        try:
            _execute(self._database, changes)
        except sqlite3.Error as error:
            self._give_up(error)

    @property
    def kept(self) -> bool:
        """Whether it is written."""
        return self._database is not None

    def session(self, heir: Heir) -> None:
        """A session as it is now."""
        self._change(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                heir.id,
                heir.key,
                heir.uid,
                heir.pid,
                heir.started,
                heir.name,
                heir.committed,
                heir.vram,
                heir.vram_bytes,
                heir.decided.paging,
                heir.decided.vram_source,
                json.dumps(heir.arenas),
            ),
        )

    def end(self, session: int) -> None:
        """A session is over, and T3 no longer has its chunks."""
        self._change_many(_end([session]))

    def store(self, session: int, chunk: int, place: Place | None) -> None:
        """T3 has the chunk there; None: the next daemon could not have it."""
        if place is None:
            self.forget(session, (chunk,))
            return
        path = None if place.path is None else place.path.bytes
        self._change(
            "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
            (session, chunk, path, _signed(place.index), place.generation, _signed(place.checksum)),
        )

    def forget(self, session: int, chunks: Sequence[int]) -> None:
        """T3 no longer has these chunks; before their extents are anybody else's."""
        rows = [(session, chunk) for chunk in chunks]
        self._change_many([("DELETE FROM chunks WHERE session = ? AND chunk = ?", rows)])

    def set_paths(self, paths: Iterable[KnownPath]) -> None:
        """The spill paths that are open now."""
        known = tuple(paths)
        self._known = frozenset(path.id for path in known)
        # At once, or a daemon that dies in between would have all chunks lost.
        self._change_many(_put(known))

    def chunks(self, session: int) -> Mapping[int, Place]:
        """What T3 had of a session's when it was written last. Raises StartupError."""
        if self._database is None:
            return {}
        try:
            rows: Iterable[tuple[Any, ...]] = self._database.execute(
                "SELECT chunk, path, place, generation, checksum FROM chunks WHERE session = ?", (session,)
            )
            return {
                chunk: Place(
                    path and uuid.UUID(bytes=path), _unsigned(place), generation, _unsigned(checksum)
                )
                for chunk, path, place, generation, checksum in rows
            }
        except (sqlite3.Error, ValueError, TypeError) as error:
            if isinstance(error, sqlite3.Error) and not _is_damaged(error):
                assert self._file is not None
                raise _startup_error(self._file, error) from error
            _log.error("%s: what session %d has in T3 cannot be read: %s", self._file, session, error)
            return {}


def _startup_error(file: Path, error: Exception) -> StartupError:
    why = getattr(error, "strerror", None) or error
    return StartupError(
        f"ledger {file}: {why}; applications may wait to go on with what it says: see that its file system "
        "has room and can be written, or remove it to give them up"
    )


def _is_damaged(error: sqlite3.Error) -> bool:
    """Whether the file is at fault, and not the means to read it."""
    code = getattr(error, "sqlite_errorcode", None)  # Python's own have none: text that is not UTF-8
    return code is None or code & 0xFF in _DAMAGED


def _end(sessions: Sequence[int]) -> list[_Change]:
    rows = [(session,) for session in sessions]
    return [("DELETE FROM chunks WHERE session = ?", rows), ("DELETE FROM sessions WHERE id = ?", rows)]


def _put(paths: Iterable[KnownPath]) -> list[_Change]:
    rows = [
        (p.id.bytes, os.fsencode(p.path), p.size, p.generation, json.dumps(asdict(p.options)), p.draining)
        for p in paths
    ]
    return [("DELETE FROM paths", [()]), ("INSERT INTO paths VALUES (?, ?, ?, ?, ?, ?)", rows)]


def _known_path(id: bytes, path: bytes, size: int, generation: int, options: str, draining: int) -> KnownPath:
    """A row of `paths`."""
    return KnownPath(
        uuid.UUID(bytes=id),
        os.fsdecode(path),
        size,
        generation,
        SpillOptions(**json.loads(options)),
        bool(draining),
    )


def _heir(*fields: Any) -> Heir:
    """A row of `sessions`."""
    *known, paging, vram_source, arenas = fields
    return replace(Heir(*known), decided=Decisions(paging, vram_source), arenas=tuple(json.loads(arenas)))


@contextmanager
def open_ledger(file: Path | None, terms: Terms) -> Iterator[Ledger]:
    """A Ledger that is closed at the end."""
    with closing(Ledger(file, terms)) as ledger:
        yield ledger


def _execute(database: sqlite3.Connection, changes: Iterable[_Change]) -> None:
    """All of them or none. Raises sqlite3.Error."""
    database.execute("BEGIN")
    try:
        for sql, rows in changes:
            if rows:
                database.executemany(sql, rows)
    except BaseException:
        if database.in_transaction:  # SQLite itself rolls back what a full disk has stopped
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _boot() -> str:
    return _BOOT.read_text().strip()


def _signed(value: int) -> int:
    """64 bits as SQLite has them."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _unsigned(value: int) -> int:
    return value % (1 << 64)
