# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: puts the parts together, starts them in order and undoes them in reverse."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import msgpack
import trio

from . import __version__, metrics
from .arena import ArenaPool, open_pool
from .arenasource import open_arena_source
from .config import Config
from .holdings import Identity
from .ledger import KnownPath, Ledger, Terms, open_ledger, process_start
from .listener import SocketError, listening
from .model import AllocationSnapshot, EndedSession, PressureSnapshot, Snapshot, format_size, printable
from .notify import notify
from .nvme.errors import SpillPathError
from .nvme.spillfile import SpillFile
from .nvme.spillset import SpillSet
from .pressure import open_source
from .reattach import Absentees
from .relief import Relief
from .server import ControlError, Peer, serve_connections
from .session import Session
from .spillcontrol import SpillControl
from .startup import MountError, SpillStartupError, StartupError
from .statemap import StateError, StateMap
from .tiers import Tiers
from .wire import Request
from .wire.connection import Connection

__all__ = ["MountError", "SocketError", "SpillStartupError", "StartupError", "serve"]

_log = logging.getLogger(__name__)

_ENDED_KEPT = 64
"""Sessions whose end is remembered."""


async def serve(
    config: Config,
    *,
    life_fd: int | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve as `config` says until a stop request, SIGTERM, SIGINT, SIGHUP or cancellation.

    With `life_fd`, the read end of a pipe that stays the caller's, the daemon is private: it ends
    when the pipe does, and its new spill files have no names. `task_status` is told when applications
    can connect. On return everything is removed: socket, mount, spill files that were made here.

    Raises StartupError (SocketError, SpillStartupError, MountError) with everything undone. Runs in
    the main thread, where signals are received.
    """
    with (
        # Around all else: one that comes while paths are opened, or a second one while they are closed,
        # would end the process there and leave the socket and a preallocated file.
        trio.open_signal_receiver(*_ending_signals()) as signals,
        listening(config.socket) as listener,
        open_arena_source(config.arena_source) as source,
        open_source(source.device, config.reserve) as pressure,
        open_ledger(None if life_fd is not None else ledger_file(config.socket), _terms(config)) as ledger,
        _open_spill(config, ledger, ephemeral=life_fd is not None) as store,
        open_pool(
            limit=ledger.terms.arenas,
            arena_bytes=ledger.terms.arena,
            chunk=ledger.terms.chunk,
            make=source.make,
        ) as pool,
    ):
        failure: StartupError | None = None
        tiers = Tiers(pool, store)
        # Before anything is stored.
        absentees = Absentees(tiers, store, ledger)
        # Outside of the tasks that wait for transfers: it ends after them.
        async with trio.open_nursery() as pump:
            await pump.start(store.run)
            relief = Relief(tiers, pressure)
            daemon = _Daemon(config, tiers, pool, store, ledger, absentees, ephemeral=life_fd is not None)
            daemon.arena_source = source.name
            daemon.pressure = relief.snapshot
            async with trio.open_nursery() as nursery:
                daemon.nursery = nursery
                nursery.start_soon(relief.run)
                nursery.start_soon(tiers.make_ahead)
                nursery.start_soon(daemon.watch_signals, signals)
                if life_fd is not None:
                    nursery.start_soon(daemon.watch_life, life_fd)
                try:
                    if config.view is not None:
                        try:
                            await daemon.mount(str(config.view))
                        except ControlError as error:
                            raise MountError(str(error)) from error
                    _take_over(ledger, store, absentees)
                except StartupError as error:
                    failure = error
                    nursery.cancel_scope.cancel()
                else:
                    nursery.start_soon(absentees.run)
                    nursery.start_soon(serve_connections, listener, daemon, daemon.serve_session)
                    made = f"{source.name} ({source.why})" if source.why else source.name
                    _log.info("serving at %s, arenas are made of %s", config.socket, made)
                    task_status.started()
                    notify("READY=1")
            pump.cancel_scope.cancel()
        if failure is not None:
            raise failure


def _ending_signals() -> set[signal.Signals]:
    ending = {signal.SIGTERM, signal.SIGINT}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup(1)
        ending.add(signal.SIGHUP)
    return ending


def ledger_file(socket: Path) -> Path:
    """Where the daemon that listens there writes down what the next one has to know."""
    return socket.with_name(f"{socket.name}.ledger")


def _terms(config: Config) -> Terms:
    return Terms(config.chunk, config.arena, config.ram // config.arena)


def _known_paths(store: SpillSet) -> list[KnownPath]:
    draining = store.draining
    return [
        KnownPath(file.id, file.path, file.size, file.generation, file.options, file.id in draining)
        for file in store.files
    ]


def _take_over(ledger: Ledger, store: SpillSet, absentees: Absentees) -> None:
    """From now on what the last daemon left is this one's, which does not fail to start any more.

    Raises StartupError, with nothing changed.
    """
    draining = {known.id for known in ledger.paths if known.draining}
    ledger.take_over([replace(path, draining=path.id in draining) for path in _known_paths(store)])
    store.drain_again(draining)
    absentees.begin()
    for file in store.files:
        file.stays = False  # unless the ledger says so at the end


@contextmanager
def _open_spill(config: Config, ledger: Ledger, *, ephemeral: bool) -> Iterator[SpillSet]:
    with ExitStack() as undo:
        chunk = ledger.terms.chunk
        files = []

        def keep(file: SpillFile) -> None:
            # Not just the next generation: a daemon may have died while it started. Whoever else had it
            # meanwhile has overwritten what it then does not prove to be.
            file.inherits = any(
                known.id == file.id and known.generation < file.generation for known in ledger.paths
            )
            file.stays = file.inherits  # should anything fail before the daemon serves
            files.append(undo.enter_context(file))

        _remove_orphans(config, ledger)
        for spec in config.spill:
            try:
                keep(
                    SpillFile.open(
                        str(spec.path), spec.size, chunk, ephemeral=ephemeral, options=spec.options
                    )
                )
            except SpillPathError as error:
                raise SpillStartupError(f"{spec.where}: {error}") from error
        configured = {file.path for file in files}
        # Those that were added while the last daemon ran, or are no longer in its settings.
        for known in ledger.paths:
            if known.path not in configured and os.path.exists(known.path) and not os.path.isdir(known.path):
                try:
                    keep(SpillFile.open(known.path, known.size, chunk, options=known.options))
                except SpillPathError as error:
                    _log.error("what applications have there is lost: %s", error)
        try:
            store = SpillSet(files, chunk=chunk, hold=ledger.fd)
        except SpillPathError as error:
            where = next(
                (spec.where for spec in config.spill if str(spec.path) == error.path), "added by command"
            )
            raise SpillStartupError(f"{where}: {error}") from error
        except OSError as error:
            where = config.spill[0].where if config.spill else "added by command"
            raise SpillStartupError(f"{where}: {error.strerror or error}") from error
        with store:
            try:
                yield store
            finally:
                kept = ledger.close()
                for file in store.files:
                    file.stays = file.id in kept
                    if file.stays and file.made:
                        _log.info(
                            "%s (%s) stays for them: the next daemon removes it, or you do if none follows",
                            file.path,
                            format_size(file.size),
                        )


def _remove_orphans(config: Config, ledger: Ledger) -> None:
    """Before anything is opened: they may have the room that it needs."""
    configured = {str(spec.path) for spec in config.spill}
    for known in ledger.orphans:
        if known.path in configured or not os.path.isfile(known.path):
            continue
        try:
            with SpillFile.open(known.path, None, ledger.terms.chunk) as file:
                # Or another daemon has had it since, for whose applications it may be there.
                file.stays = (file.id, file.generation) != (known.id, known.generation + 1)
                if file.stays:
                    _log.warning(
                        "%s (%s) has been opened by another daemon since, and is left as it is; remove it if "
                        "none uses it",
                        known.path,
                        format_size(file.size),
                    )
        except SpillPathError as error:
            _log.warning("it is left as it is: %s", error)


class _Daemon:
    """What the daemon knows of itself; the server's Control."""

    def __init__(
        self,
        config: Config,
        tiers: Tiers,
        pool: ArenaPool,
        store: SpillSet,
        ledger: Ledger,
        absentees: Absentees,
        *,
        ephemeral: bool,
    ) -> None:
        self.nursery: trio.Nursery
        self.arena_source: str
        self.pressure: Callable[[], PressureSnapshot]
        self._config = config
        self._tiers = tiers
        self._pool = pool
        self._store = store
        self._ledger = ledger
        self._absentees = absentees
        self._sessions: dict[int, Session] = {}
        self._ids = itertools.count(1 + max((heir.id for heir in ledger.heirs), default=0))
        self._ended: deque[EndedSession] = deque(maxlen=_ENDED_KEPT)
        self._view: _View | None = None
        spills = SpillControl(
            tiers, ephemeral=ephemeral, changed=lambda: ledger.set_paths(_known_paths(store))
        )
        self.spill_add = spills.add
        self.spill_drain = spills.drain
        self.spill_remove = spills.remove

    # Sessions

    async def serve_session(self, connection: Connection, hello: Request, peer: Peer) -> None:
        """A shim said hello; see server.StartSession."""
        try:
            state = StateMap(hello.fds[0])
        except StateError as error:
            await connection.refuse(hello.id, error.name, str(error))
            return
        absent, key = None, hello.text("key")
        if key:
            try:
                absent = await self._absentees.claim(key, pid=peer.pid, uid=peer.uid)
            except BaseException:
                state.close()
                raise
            if absent is None:
                state.close()
                await connection.refuse(hello.id, "EPERM", "this daemon knows of no such session of yours")
                return
        elif self._ledger.kept:
            key = secrets.token_hex(16)
        # Within a PID namespace that we do not see into, the kernel says 0.
        pid = peer.pid or hello.uint("pid")
        who = Identity(
            id=next(self._ids) if absent is None else absent.heir.id,
            pid=pid,
            uid=peer.uid,
            name=printable(hello.text("name")),
            pidfd=peer.pidfd,
            vouched_pid=peer.pid,
            key=key,
            # By the number that was said, which is of another namespace, nobody is found.
            started=process_start(pid) if peer.pid else 0,
        )
        session = Session(
            who, connection, state, self._tiers, self._ledger, absent=absent, ended=self._remember
        )
        self._sessions[who.id] = session
        await session.run(hello)

    def _remember(self, id: int, ended: EndedSession | None) -> None:
        del self._sessions[id]
        if ended is not None:
            self._ended.append(ended)

    # Its end

    def stop(self) -> None:
        """End the daemon; see server.Control."""
        notify("STOPPING=1")
        self.nursery.cancel_scope.cancel()

    async def watch_signals(self, signals: AsyncIterator[int]) -> None:
        """End the daemon at the first of `signals`."""
        async for number in signals:
            _log.info("%s: ending", signal.Signals(number).name)
            self.stop()

    async def watch_life(self, fd: int) -> None:
        """End the daemon when the pipe `fd` does."""
        await trio.lowlevel.wait_readable(fd)
        self.stop()

    # What it shows

    def snapshot(self, *, allocations: bool = False) -> Snapshot:
        """Everything now; the sessions' allocations, if wanted, without their maps."""
        arenas, ahead = self._tiers.arenas
        return metrics.snapshot(
            pid=os.getpid(),
            version=__version__,
            socket=str(self._config.socket),
            chunk_bytes=self._pool.chunk,
            chunk_source=self._config.chunk_source
            if self._pool.chunk == self._config.chunk
            else "last daemon",
            paging=self._config.paging,
            arena_bytes=self._pool.arena_bytes,
            arenas=arenas,
            arenas_ahead=ahead,
            arena_limit=self._pool.limit,
            spill_paths=self._store.snapshot(),
            sessions=[
                session.holdings.snapshot(allocations=allocations) for session in self._sessions.values()
            ],
            ended=self._ended,
            arena_source=self.arena_source,
            pressure=self.pressure(),
            mountpoint=None if self._view is None else str(self._view.mountpoint),
        )

    def status(self) -> bytes:
        """See server.Control."""
        packed: bytes = msgpack.packb(metrics.to_dict(self.snapshot()))
        return packed

    async def mount(self, directory: str) -> None:
        """See server.Control."""
        if self._view is not None:
            raise ControlError("EBUSY", f"the view is mounted at {self._view.mountpoint} already")
        self._view = _View(Path(directory))
        try:
            await self.nursery.start(self._show, self._view)
        except BaseException:
            self._view = None
            raise

    async def unmount(self) -> None:
        """See server.Control."""
        view = self._view
        if view is None:
            raise ControlError("ENOENT", "the view is not mounted")
        view.scope.cancel()
        await view.gone.wait()

    async def _show(self, view: _View, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            from .view import ViewError, serve_view
        except ImportError as error:  # pyfuse3 is optional
            raise ControlError("ENOTSUP", f"the view needs the Python package pyfuse3 ({error})") from error
        mounted = _Once(task_status)
        try:
            with view.scope:
                await serve_view(
                    view.mountpoint,
                    lambda: self.snapshot(allocations=True),
                    chunk_map=self._chunk_map,
                    task_status=mounted,
                )
        except ViewError as error:
            raise ControlError("EINVAL", str(error)) from error
        except Exception:
            if not mounted.done:
                raise
            _log.exception("the view ended by an error of the daemon's")
        finally:
            self._view = None
            view.gone.set()

    def _chunk_map(self, session: int, allocation: AllocationSnapshot) -> str:
        if session not in self._sessions:
            return ""  # it ended since its directory was listed
        return self._sessions[session].holdings.chunk_map(allocation.first_chunk, allocation.chunks)


class _View:
    """The view while it is mounted, being mounted or being unmounted."""

    __slots__ = ("gone", "mountpoint", "scope")

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self.scope = trio.CancelScope()
        self.gone = trio.Event()


class _Once:
    """A task status that remembers having been told."""

    def __init__(self, inner: trio.TaskStatus[None]) -> None:
        self.done = False
        self._inner = inner

    def started(self, value: None = None) -> None:
        self.done = True
        self._inner.started(value)
