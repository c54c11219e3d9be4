# SPDX-License-Identifier: GPL-2.0-or-later
"""What ordinary tools see in a view that is really mounted."""

from __future__ import annotations

import errno
import os
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
import trio

from tests.unit.view_harness import (
    ADDRESS,
    GAMES,
    NOBODY,
    Source,
    allocation,
    mounted,
    needs_fuse,
    needs_root,
    session,
    shell,
    snapshot,
)
from tierd.view import _View


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A directory that other users can reach: pytest closes its own to them."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory == Path(tempfile.gettempdir()):
            break
        directory.chmod(0o755)
    return tmp_path


@needs_fuse
@pytest.mark.trio
async def test_ordinary_tools_read_it(tmp_path: Path) -> None:
    async with mounted(tmp_path, Source(session())):
        found = (
            await shell('cd "$V" && find . -type f | wc -l; grep -r . . | wc -l', tmp_path)
        ).stdout.split()
        assert found == ["50", "52"]  # a map of 130 chunks has 3 lines
        sizes = (await shell('cd "$V" && find . -type f -printf "%s %p\n"', tmp_path)).stdout.splitlines()
        for line in sizes:
            size, path = line.split(" ", 1)
            assert len(await trio.Path(tmp_path, path).read_bytes()) == int(size), path
        where = f'"$V"/sessions/3/allocations/{ADDRESS:#x}/map'
        assert (await shell(f"tail -c 3 {where}", tmp_path)).stdout == "33\n"
        assert (await shell(f"head -n 2 {where} | tail -n 1 | cut -c 1-6", tmp_path)).stdout == "23.^v-\n"
        listing = (await shell('ls -l "$V"/tiers/vram/total_bytes; stat -f -c %T "$V"', tmp_path)).stdout
        assert listing.startswith("-r--r--r--")
        assert "fuse" in listing


@needs_fuse
@pytest.mark.trio
async def test_reads_at_offsets_are_of_the_moment_of_open(tmp_path: Path) -> None:
    source = Source(session())
    where = tmp_path / f"sessions/3/allocations/{ADDRESS:#x}/map"

    def look() -> None:
        with open(where, "rb", buffering=0) as file:
            assert file.read(4) == b"1111"
            source.now = snapshot(session(allocations=(allocation(chunks=3, map="222"),)))
            assert os.fstat(file.fileno()).st_size == 133
            assert os.pread(file.fileno(), 6, 65) == b"23.^v-"
            assert os.pread(file.fileno(), 6, 131) == b"3\n"
            assert os.pread(file.fileno(), 6, 133) == b""
            assert file.seek(-3, os.SEEK_END) == 130
            assert file.read() == b"33\n"
            assert where.read_bytes() == b"222\n"
            source.now = snapshot()
            assert file.seek(0) == 0
            assert len(file.read()) == 133
        with pytest.raises(FileNotFoundError):
            where.read_bytes()

    async with mounted(tmp_path, source):
        await trio.to_thread.run_sync(look)


@needs_fuse
@pytest.mark.trio
async def test_sessions_come_and_go_during_a_listing(tmp_path: Path) -> None:
    source = Source(session(1), session(2))

    def look() -> None:
        with os.scandir(tmp_path / "sessions") as entries:
            first = next(entries)
            source.now = snapshot(session(2), session(7))
            assert {first.name, *(entry.name for entry in entries)} <= {"1", "2"}
        assert os.listdir(tmp_path / "sessions") == ["2", "7"]
        with pytest.raises(FileNotFoundError):
            os.listdir(tmp_path / "sessions/1")
        assert (tmp_path / "sessions/7/pid").read_text() == "42\n"
        handle = os.open(tmp_path / "sessions/7", os.O_RDONLY | os.O_DIRECTORY)
        try:
            source.now = snapshot()
            assert os.listdir(handle) == []  # glibc takes ENOENT for the end of a removed directory
        finally:
            os.close(handle)

    async with mounted(tmp_path, source):
        await trio.to_thread.run_sync(look)


@needs_fuse
@pytest.mark.trio
async def test_new_session_is_seen_at_once(tmp_path: Path) -> None:
    source = Source()

    def look() -> None:
        assert not (tmp_path / "sessions/3").exists()
        source.now = snapshot(session())
        assert (tmp_path / "sessions/3/pid").read_text() == "42\n"

    async with mounted(tmp_path, source):
        await trio.to_thread.run_sync(look)


@needs_fuse
@pytest.mark.trio
async def test_nothing_can_be_changed(tmp_path: Path) -> None:
    def look() -> None:
        file = tmp_path / "version"
        for change in (
            partial(file.write_text, "2"),
            file.unlink,
            partial(file.rename, tmp_path / "other"),
            partial(file.chmod, 0o666),
            partial(os.truncate, file, 0),
            (tmp_path / "new").touch,
            (tmp_path / "dir").mkdir,
            (tmp_path / "tiers").rmdir,
        ):
            with pytest.raises(OSError) as refused:
                change()
            assert refused.value.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        assert not os.access(file, os.W_OK)
        assert os.access(file, os.R_OK)
        assert file.read_text() == "0.1\n"

    async with mounted(tmp_path, Source(session())):
        await trio.to_thread.run_sync(look)


@needs_fuse
@needs_root
@pytest.mark.trio
async def test_a_session_is_shown_to_its_user_alone(open_path: Path) -> None:
    async with mounted(open_path, Source(session(3, uid=NOBODY), session(4, uid=GAMES))):
        own = await shell(
            'cat "$V"/version "$V"/sessions/3/pid "$V"/sessions/3/counters/hits', open_path, user=NOBODY
        )
        assert (own.returncode, own.stdout) == (0, "0.1\n42\n1\n")
        names = await shell('ls "$V"/sessions', open_path, user=NOBODY)
        assert names.stdout == "3\n4\n"
        for command in ('ls "$V"/sessions/4', 'cat "$V"/sessions/4/pid', 'cd "$V"/sessions/4',
                        f'cat "$V"/sessions/4/allocations/{ADDRESS:#x}/map'):  # fmt: skip
            other = await shell(command, open_path, user=NOBODY)
            assert other.returncode != 0, command
            assert not other.stdout
            assert "denied" in other.stderr or "can't cd" in other.stderr
        root = await shell('cat "$V"/sessions/4/pid', open_path)
        assert root.stdout == "42\n"


@needs_fuse
@pytest.mark.trio
async def test_inode_numbers_are_stable_and_distinct(tmp_path: Path) -> None:
    def numbers() -> dict[str, int]:
        return {str(path): path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}

    async with mounted(tmp_path, Source(session())):
        first = await trio.to_thread.run_sync(numbers)
        assert await trio.to_thread.run_sync(numbers) == first
        assert len(set(first.values())) == len(first)


@pytest.mark.trio
async def test_what_the_kernel_forgets_is_forgotten() -> None:
    view = _View(Source(session()), lambda number, a: a.map)
    caller = cast(pyfuse3.RequestContext, SimpleNamespace(uid=os.geteuid()))
    held = len(view._known)
    for _ in range(3):
        parent = pyfuse3.ROOT_INODE
        for name in (b"sessions", b"3", b"allocations"):
            parent = (await view.lookup(parent, pyfuse3.FileNameT(name), caller)).st_ino
    assert len(view._known) == held + 3
    await view.forget([(inode, 2) for inode in view._known])
    assert len(view._known) == held + 3
    await view.forget([(inode, 1) for inode in view._known])
    assert len(view._known) == held
