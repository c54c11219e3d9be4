# SPDX-License-Identifier: GPL-2.0-or-later
"""The view's mount comes, goes, and is never left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyfuse3
import pytest
import trio

from tests.unit.view_harness import (
    Source,
    is_mounted,
    mounted,
    needs_fuse,
    needs_root,
    session,
    wait_unmounted,
)
from tierd.view import ViewError, serve_view

READER = """
import errno, os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
os.write(1, b"open")
os.read(0, 1)
try:
    os.write(1, os.read(handle, 10))
except OSError as error:
    os.write(1, errno.errorcode[error.errno].encode())
"""


@needs_fuse
@pytest.mark.trio
async def test_unmounted_when_cancelled_even_with_a_reader_inside(tmp_path: Path) -> None:
    async with mounted(tmp_path, Source(session())):
        assert await trio.to_thread.run_sync(is_mounted, tmp_path)
        # Another process, as it will be: one that serves a view and has a file of it open waits for
        # itself when a child that it starts closes that file.
        reader = await trio.lowlevel.open_process(
            [sys.executable, "-c", READER, str(tmp_path / "version")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert await reader.stdout.receive_some() == b"open"
    assert not is_mounted(tmp_path)
    assert os.listdir(tmp_path) == []
    with trio.fail_after(30):
        async with reader.stdin, reader.stdout:
            await reader.stdin.send_all(b"!")
            assert await reader.stdout.receive_some() in (b"ENOTCONN", b"ECONNABORTED")
        await reader.wait()
    async with mounted(tmp_path, Source(session())):
        assert await trio.Path(tmp_path / "version").read_text() == "0.1\n"


@needs_fuse
@pytest.mark.trio
async def test_ends_when_somebody_else_unmounts(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_view, tmp_path, Source(session()))
            await trio.run_process(["fusermount3", "-u", str(tmp_path)])
    assert not is_mounted(tmp_path)


@needs_fuse
@pytest.mark.trio
async def test_error_of_the_daemon_unmounts(tmp_path: Path) -> None:
    """Whatever goes wrong in the daemon, nothing stays mounted."""
    with pytest.raises(BaseExceptionGroup):
        async with mounted(tmp_path, Source(session())):
            raise ZeroDivisionError
    assert not is_mounted(tmp_path)


@needs_fuse
@pytest.mark.trio
async def test_withdrawn_request_does_not_end_the_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller was killed between the wake-up and the read: then there is nothing to read."""
    serve, calls = pyfuse3.main, []

    async def main(**options: int) -> None:
        calls.append(options)
        if len(calls) == 1:
            raise ExceptionGroup("from pyfuse3's nursery", [OSError(errno.EAGAIN, "no request")])
        await serve(**options)

    monkeypatch.setattr(pyfuse3, "main", main)
    async with mounted(tmp_path, Source()):
        assert await trio.Path(tmp_path / "version").read_text() == "0.1\n"
    assert len(calls) == 2
    assert not is_mounted(tmp_path)


@needs_fuse
@pytest.mark.trio
@pytest.mark.parametrize(
    ("where", "says"),
    [("missing", "no such file or directory"), ("file", "not a directory"), ("full", "not empty")],
)
async def test_refuses(tmp_path: Path, where: str, says: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(ViewError, match=says) as refused:
        await serve_view(tmp_path / where, Source())
    assert str(tmp_path / where) in str(refused.value)
    assert not is_mounted(tmp_path / where)


VIEW_PROCESS = """
import sys, trio
from pathlib import Path
from tierd.view import serve_view
from tests.unit.view_harness import Source, session

async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_view, Path(sys.argv[1]), Source(session()))
        print("mounted", flush=True)

trio.run(main)
"""


@pytest.fixture
def killed_daemon(tmp_path: Path) -> Path:
    """A mount point whose daemon was killed outright."""
    process = subprocess.Popen(
        [sys.executable, "-c", VIEW_PROCESS, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mounted\n"
        assert is_mounted(tmp_path)
        process.kill()
    return tmp_path


@needs_fuse
def test_killed_daemon_leaves_no_mount(killed_daemon: Path) -> None:
    wait_unmounted(killed_daemon)
    assert list(killed_daemon.iterdir()) == []


@needs_fuse
@needs_root
@pytest.mark.trio
async def test_stale_mount_is_cleared_away(tmp_path: Path) -> None:
    """A mount without keeper (the machine's fusermount3 was killed too) whose daemon is gone."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
        await trio.run_process(
            ["mount", "-i", "-t", "fuse", "-o", options, "stale", str(tmp_path)], pass_fds=(fuse,)
        )
    finally:
        os.close(fuse)
    with pytest.raises(OSError, match="not connected"):
        os.stat(tmp_path)
    async with mounted(tmp_path, Source(session())):
        assert await trio.Path(tmp_path / "version").read_text() == "0.1\n"
    assert not is_mounted(tmp_path)
