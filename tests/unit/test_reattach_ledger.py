# SPDX-License-Identifier: GPL-2.0-or-later
"""Ledgers that the next daemon cannot use."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from tierd.wire import RemoteError

from .daemon_harness import status
from .reattach_harness import Application, begin, content, ledger_of, running

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


async def test_a_ledger_of_another_version_is_said_to_be_one(
    tmp_path: Path, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    await begin(application, tmp_path)
    assert ledger_of(tmp_path).stat().st_mode & 0o077 == 0
    with sqlite3.connect(ledger_of(tmp_path)) as database:
        database.execute("UPDATE daemon SET version = 1")
    database.close()
    async with running(tmp_path) as conf:
        assert "is of another version of GreenBoost (1, this one writes 2)" in caplog.text
        assert (await status(conf))["spill"][0]["used_bytes"] == 0


async def test_a_ledger_whose_chunks_cannot_be_read(tmp_path: Path, application: Application) -> None:
    await begin(application, tmp_path)
    with sqlite3.connect(ledger_of(tmp_path)) as database:
        database.execute("DROP TABLE chunks")
    database.close()
    async with running(tmp_path) as conf, application.again(conf.socket, lost=frozenset({0, 1, 2})) as shim:
        (arena,) = shim.arenas.values()
        assert arena.read(0) == content(3)


async def test_a_ledger_of_another_boot(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(application, tmp_path)
    boot = tmp_path / "run" / "boot_id"
    boot.write_text("another")
    monkeypatch.setattr("tierd.ledger._BOOT", boot)
    async with running(tmp_path) as conf:
        assert (await status(conf))["spill"][0]["used_bytes"] == 0
        boot.unlink()


@pytest.mark.parametrize("damage", ["garbage", "empty", "foreign", "readable", "readable log"])
async def test_a_ledger_that_is_none(tmp_path: Path, application: Application, damage: str) -> None:
    await begin(application, tmp_path)
    ledger = ledger_of(tmp_path)
    if damage == "readable log":
        ledger.with_name(f"{ledger.name}-wal").chmod(0o644)
    elif damage != "readable":
        ledger.with_name(f"{ledger.name}-wal").unlink()  # from which it would be mended
    if damage == "garbage":
        ledger.write_bytes(struct.pack("<Q", 7) * 10000)
    elif damage == "empty":
        ledger.write_bytes(b"")
    elif damage == "readable":
        ledger.chmod(0o644)
    elif damage == "foreign":
        ledger.unlink()
        ledger.symlink_to("/etc/passwd")
    async with running(tmp_path) as conf:
        with pytest.RaisesGroup(pytest.RaisesExc(RemoteError, match="no such session of yours")):
            async with application.connect(conf.socket):
                pass
        with suppress(FileNotFoundError):
            assert not ledger.is_symlink()
        async with Application(application.state).connect(conf.socket) as shim:
            await shim.alloc(0, 1)
