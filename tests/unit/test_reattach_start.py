# SPDX-License-Identifier: GPL-2.0-or-later
"""How a daemon starts, or fails to, where the last one had applications."""

from __future__ import annotations

import logging
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tierd.config import Config, SpillSpec
from tierd.daemon import MountError, SpillStartupError, StartupError, serve
from tierd.nvme.spillfile import SpillFile
from tierd.relief import Relief
from tierd.wire import connect

from .daemon_harness import CHUNK, MIB, settings, status
from .reattach_harness import (
    Application,
    begin,
    content,
    daemon,
    doomed,
    fetched,
    ledger_of,
    put,
    running,
    socket_of,
)

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


async def leave_orphan(directory: Path) -> Path:
    """A spill file of a daemon that died, and of nobody else."""
    added = directory / "added"

    def add() -> None:
        options = {"weight": 1000, "encrypt": 0, "daily_writes": 0, "deadline": 10000, "poll": "none"}
        with connect(socket_of(directory)) as control:
            control.call("spill_add", path=str(added), size=MIB + 8 * CHUNK, force=0, **options)

    with daemon(directory) as process:
        await trio.to_thread.run_sync(add)
        process.kill()
        process.wait()
    return added


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_one_daemon_after_the_other(
    tmp_path: Path, application: Application, number: signal.Signals
) -> None:
    path = socket_of(tmp_path)
    await begin(application, tmp_path)
    for turn in range(2):
        with daemon(tmp_path) as process:
            async with application.again(path) as shim:
                arena = next(iter(shim.arenas.values()))
                assert await fetched(shim, 0) == content(turn + 1)
                put(arena, 1, turn + 2)
                await shim.call("spill", chunk=0, arena=arena.id, slot=1)
                process.send_signal(number)
                await shim.ended.wait()
            process.wait()
    # One that dies before anybody is back loses nothing either.
    with daemon(tmp_path):
        pass
    async with running(tmp_path) as conf, application.again(conf.socket) as shim:
        assert await fetched(shim, 0) == content(3)
        assert await fetched(shim, 1) == content(2)


async def test_settings_that_would_not_do_wait_until_nobody_goes_on(
    tmp_path: Path, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Larger chunks, less RAM, and no spill path any more."""
    await begin(application, tmp_path)
    other = settings(tmp_path, ram="8MiB", arena="8MiB", extents=0)
    async with running(tmp_path, replace(other, chunk=2 * CHUNK)) as conf:
        assert "chunks stay of 2097152 bytes and arenas of 4194304, since 1 applications go on" in caplog.text
        before = await status(conf)
        assert (before["chunk_bytes"], before["arena_bytes"]) == (CHUNK, 4 * MIB)
        async with application.again(conf.socket) as shim:
            assert await fetched(shim, 0) == content(1)
    async with running(tmp_path, replace(other, chunk=2 * CHUNK)) as conf:
        after = await status(conf)
        assert (after["chunk_bytes"], after["arena_bytes"], after["spill"]) == (2 * CHUNK, 8 * MIB, [])


async def test_what_was_encrypted_is_lost_and_not_written_down(
    tmp_path: Path, application: Application
) -> None:
    await begin(application, tmp_path, encrypt=True)
    with sqlite3.connect(ledger_of(tmp_path)) as database:
        assert database.execute("SELECT * FROM chunks").fetchall() == []
    database.close()
    async with running(tmp_path) as conf, application.again(conf.socket, lost=frozenset({0, 1, 2})) as shim:
        (arena,) = shim.arenas.values()
        assert arena.read(0) == content(3)
        await shim.call("spill", chunk=0, arena=arena.id, slot=0)
        assert await fetched(shim, 0) == content(3)


async def test_a_path_that_was_added_is_opened_again_or_removed(
    tmp_path: Path, application: Application
) -> None:
    added = tmp_path / "added"
    conf = settings(tmp_path, ram="16MiB", arena="4MiB", extents=0)

    def add() -> None:
        options = {"weight": 1000, "encrypt": 0, "daily_writes": 0, "deadline": 10000, "poll": "none"}
        with connect(conf.socket) as control:
            control.call("spill_add", path=str(added), size=MIB + 8 * CHUNK, force=0, **options)
            control.call("spill_remove", path=str(tmp_path / "spill"))

    with daemon(tmp_path) as process:
        await trio.to_thread.run_sync(add)
        async with application.connect(conf.socket) as shim:
            await application.alloc(shim, 0, 3)
            arena = await application.arena(shim)
            put(arena, 0, 1)
            await shim.call("spill", chunk=0, arena=arena.id, slot=0)
            application.extents = {0}
            process.kill()
            await shim.ended.wait()
    async with running(tmp_path, conf), application.again(conf.socket) as shim:
        assert await fetched(shim, 0) == content(1)
    assert not added.exists()
    with daemon(tmp_path) as process:
        await trio.to_thread.run_sync(add)
        with doomed(conf.socket):
            process.kill()
            process.wait()
    # Its application is gone before anybody follows.
    assert added.exists()
    async with running(tmp_path, conf):
        assert not added.exists()


async def test_what_nobody_needs_is_removed_before_a_start_can_fail(tmp_path: Path) -> None:
    """It may be why there is no room."""
    added = await leave_orphan(tmp_path)
    with pytest.raises(SpillStartupError):
        await serve(in_vain(settings(tmp_path, ram="16MiB", arena="4MiB", extents=8), "spill"))
    assert not added.exists()


async def test_what_another_daemon_has_left_there_stays(tmp_path: Path) -> None:
    added = await leave_orphan(tmp_path)
    with SpillFile.open(str(added), None, CHUNK) as file:
        file.stays = True
    async with running(tmp_path):
        assert added.exists()
        added.unlink()


async def test_files_that_stay_are_named(
    tmp_path: Path, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever removes the ledger, as a reboot may, has to know of them."""
    caplog.set_level(logging.INFO)
    await begin(application, tmp_path)
    conf = settings(tmp_path, ram="16MiB", arena="4MiB", extents=8)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, conf)
        nursery.cancel_scope.cancel()
    assert f"{tmp_path / 'spill'} (17.0 MiB) stays for them" in caplog.text
    async with running(tmp_path), application.again(conf.socket):
        pass


async def test_a_path_goes_on_being_drained(tmp_path: Path, application: Application) -> None:
    options = {"weight": 1000, "encrypt": 0, "daily_writes": 0, "deadline": 10000, "poll": "none"}
    spill, added = str(tmp_path / "spill"), str(tmp_path / "added")

    def drain() -> None:
        with connect(socket_of(tmp_path)) as control:
            control.call("spill_add", path=added, size=MIB + 8 * CHUNK, force=0, **options)
            control.call("spill_drain", path=spill)

    with daemon(tmp_path) as process:
        await trio.to_thread.run_sync(drain)
        async with application.connect(socket_of(tmp_path)) as shim:
            process.kill()
            await shim.ended.wait()
    async with running(tmp_path) as conf, application.again(conf.socket):
        states = {path["path"]: path["state"] for path in (await status(conf))["spill"]}
        assert states == {spill: "draining", added: "active"}


def in_vain(conf: Config, what: str) -> Config:
    if what == "mount":
        return replace(conf, view=conf.socket.parent / "nowhere" / "view")
    if what == "ledger":
        with sqlite3.connect(ledger_of(conf.socket.parents[1])) as database:
            database.execute(
                "CREATE TRIGGER IF NOT EXISTS full BEFORE DELETE ON paths "
                "BEGIN SELECT RAISE(FAIL, 'full'); END"
            )
        database.close()
        return conf
    return replace(conf, spill=(*conf.spill, SpillSpec(conf.socket / "nowhere", 8 * MIB, "test")))


@pytest.mark.parametrize(
    ("what", "error"), [("mount", MountError), ("spill", SpillStartupError), ("ledger", StartupError)]
)
async def test_a_start_that_fails_leaves_everything_to_the_next(
    tmp_path: Path, application: Application, what: str, error: type[Exception]
) -> None:
    await begin(application, tmp_path)
    conf = settings(tmp_path, ram="16MiB", arena="4MiB", extents=8)
    for _ in range(2):
        with pytest.raises(error):
            await serve(in_vain(conf, what))
    if what == "ledger":
        with sqlite3.connect(ledger_of(tmp_path)) as database:
            database.execute("DROP TRIGGER full")
        database.close()
    async with running(tmp_path), application.again(conf.socket) as shim:
        assert await fetched(shim, 0) == content(1)
        assert await fetched(shim, 2) == b"\7" * CHUNK


@pytest.mark.parametrize("back", [False, True])
async def test_an_error_of_the_daemon_leaves_everything_to_the_next(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    await begin(application, tmp_path)
    conf = settings(tmp_path, ram="16MiB", arena="4MiB", extents=8)
    fails = trio.Event()

    async def fail(self: Relief) -> None:
        await fails.wait()
        raise ZeroDivisionError

    async def use() -> None:
        if back:
            async with application.again(conf.socket) as shim:
                fails.set()
                await shim.ended.wait()
        fails.set()

    with monkeypatch.context() as patch:
        patch.setattr(Relief, "run", fail)
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, conf)
                nursery.start_soon(use)
    async with running(tmp_path), application.again(conf.socket) as shim:
        assert await fetched(shim, 0) == content(1)
