# SPDX-License-Identifier: GPL-2.0-or-later
"""The read-only file system that shows what is where: one value a file, its unit in the name.

    VIEW/version  pid  socket  chunk_bytes  chunk_source  paging  arena_bytes  arenas  arenas_ahead
    VIEW/tiers/{vram,ram,nvme}/{total_bytes,used_bytes}
    VIEW/spill/<n>/{path,total_bytes,used_bytes,written_bytes,read_bytes,reading_ns,
                    state,errors,retired_bytes,written_today_bytes}
    VIEW/sessions/<id>/{pid,uid,name,paging,vram_slots,vram_bytes,vram_source,committed_chunks}
    VIEW/sessions/<id>/{t1_bytes,t2_bytes,t3_bytes,nvme_written_bytes,nvme_read_bytes}
    VIEW/sessions/<id>/counters/<name>
    VIEW/sessions/<id>/allocations/<hex address>/{bytes,chunks,map}

A file's content is fixed when it is opened, a directory's when its listing starts: one reader sees
one moment. A session's directory is open to the session's user, the daemon's user and root.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileInfo, FileNameT, FlagT, FUSEError, InodeT, ModeT, RequestContext

from . import fusemount
from .fusemount import ViewError
from .model import AllocationSnapshot, Snapshot
from .viewtree import ChunkMap, Directory, Found, find, tree

__all__ = ["ViewError", "serve_view"]

_RECENT = 0.1
"""Seconds a snapshot may serve for names and attributes (never for contents)."""

_BLOCK = 512
"""Unit of st_blocks, bytes, fixed by stat(2)."""

Path_ = tuple[str, ...]


def _map_of(_session: int, allocation: AllocationSnapshot) -> str:
    return allocation.map


async def serve_view(
    mountpoint: Path,
    snapshot: Callable[[], Snapshot],
    *,
    chunk_map: ChunkMap = _map_of,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Show `snapshot()` at `mountpoint` until cancelled, then unmount.

    `snapshot` is called in the trio thread and should leave out the allocations' maps if they are
    many: `chunk_map` is asked for one when its file is opened. `task_status` is told once the mount
    is there. Returns early when somebody else unmounts it. Raises ViewError when it cannot be
    mounted. One view a process (libfuse's session is global in pyfuse3).
    """
    mounted = await trio.to_thread.run_sync(fusemount.mount, mountpoint)
    try:
        # A request can be withdrawn (its caller killed) between the wake-up and the read; a blocking
        # read would then stop the whole daemon until the next request.
        os.set_blocking(mounted.fd, False)
        pyfuse3.init(_View(snapshot, chunk_map), f"/dev/fd/{mounted.fd}", set())
    except BaseException:
        os.close(mounted.fd)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(fusemount.unmount, mounted)
        raise
    try:
        async with trio.open_nursery() as nursery:
            # Shielded: unmounting below may ask this file system things, so it must still answer.
            nursery.start_soon(_serve_shielded, nursery.cancel_scope)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(fusemount.unmount, mounted)
                    pyfuse3.terminate()
    finally:
        pyfuse3.close(unmount=False)


async def _serve_shielded(ended: trio.CancelScope) -> None:
    with trio.CancelScope(shield=True):
        again = True
        while again:
            again = False
            try:
                # The handlers never wait, so more than one task would only take turns.
                await pyfuse3.main(max_tasks=1)
            except* BlockingIOError:
                again = True  # the withdrawn request: see serve_view()
    ended.cancel()


@dataclass(slots=True)
class _Known:
    """An inode that the kernel holds references to."""

    path: Path_
    lookups: int


@dataclass(slots=True)
class _OpenDirectory:
    inode: InodeT
    names: tuple[str, ...] = ()


class _View(pyfuse3.Operations):
    """The request handlers. None of them waits, so each sees and leaves a consistent state."""

    def __init__(self, snapshot: Callable[[], Snapshot], chunk_map: ChunkMap) -> None:
        super().__init__()
        self._snapshot = snapshot
        self._chunk_map = chunk_map
        self._recent: tuple[float, Directory] | None = None
        self._known: dict[InodeT, _Known] = {pyfuse3.ROOT_INODE: _Known((), 1)}
        self._handles = itertools.count(1)
        self._files: dict[FileHandleT, tuple[InodeT, bytes]] = {}
        self._directories: dict[FileHandleT, _OpenDirectory] = {}
        self._uid = os.geteuid()
        self._gid = os.getegid()
        self._started_ns = time.time_ns()

    # Names and attributes

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._known[parent_inode].path
        if name == b".":
            path = parent
        elif name == b"..":
            path = parent[:-1]
        else:
            path = (*parent, os.fsdecode(name))
        self._check(self._find(parent), ctx)
        attributes = self._attributes(path, self._find(path))
        self._remember(attributes.st_ino, path)
        return attributes

    async def forget(self, inode_list: list[tuple[InodeT, int]]) -> None:  # type: ignore[override]
        for inode, lookups in inode_list:
            known = self._known.get(inode)
            if known is None or inode == pyfuse3.ROOT_INODE:
                continue
            known.lookups -= lookups
            if known.lookups <= 0:
                del self._known[inode]

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        path = self._known[inode].path
        # Somebody who has the file open reads what it was then: the size must be of that moment too,
        # or a seek from the end lands wrongly. fstat does not say through which handle it came; the
        # latest is right unless several readers have opened it at different lengths.
        for other, content in reversed(self._files.values()):
            if other == inode:
                return self._file_attributes(path, len(content), self._find_or_none(path))
        return self._attributes(path, self._find(path))

    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        if mode & os.W_OK:
            return False
        found = self._find(self._known[inode].path)
        return self._may(found, ctx) and not (mode & os.X_OK and not isinstance(found.node, Directory))

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_namemax = 255
        answer.f_files = len(self._known)
        return answer

    # Files

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        found = self._find(self._known[inode].path, fresh=True)
        self._check(found, ctx)
        if isinstance(found.node, Directory):
            raise FUSEError(errno.EISDIR)
        handle = FileHandleT(next(self._handles))
        self._files[handle] = (inode, found.node.read())
        # direct_io: the page cache would serve what an earlier reader saw, cut at today's size.
        return FileInfo(fh=handle, direct_io=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        _, content = self._files[fh]
        return content[off : off + size]

    async def release(self, fh: FileHandleT) -> None:
        del self._files[fh]

    # Directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        found = self._find(self._known[inode].path)
        self._check(found, ctx)
        handle = FileHandleT(next(self._handles))
        self._directories[handle] = _OpenDirectory(inode)
        return handle

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._directories[fh]
        path = self._known[directory.inode].path
        if start_id == 0:
            found = self._find(path, fresh=True)
            assert isinstance(found.node, Directory)
            directory.names = tuple(found.node.children)
        for at in range(start_id, len(directory.names)):
            child = (*path, directory.names[at])
            found_child = self._find_or_none(child)
            if found_child is None:
                continue  # it ended since the listing began
            attributes = self._attributes(child, found_child)
            if not pyfuse3.readdir_reply(
                token, FileNameT(os.fsencode(directory.names[at])), attributes, at + 1
            ):
                return
            self._remember(attributes.st_ino, child)

    async def releasedir(self, fh: FileHandleT) -> None:
        del self._directories[fh]

    # What the handlers share

    def _tree(self, *, fresh: bool) -> Directory:
        """The tree of now; unless `fresh`, of a moment ago: `find` asks for thousands of names."""
        now = trio.current_time()
        if fresh or self._recent is None or now - self._recent[0] > _RECENT:
            self._recent = (now, tree(self._snapshot(), self._chunk_map))
        return self._recent[1]

    def _find_or_none(self, path: Path_, *, fresh: bool = False) -> Found | None:
        # What a moment ago did not have may have come since: never deny it from memory.
        return find(self._tree(fresh=fresh), path) or (None if fresh else find(self._tree(fresh=True), path))

    def _find(self, path: Path_, *, fresh: bool = False) -> Found:
        found = self._find_or_none(path, fresh=fresh)
        if found is None:
            raise FUSEError(errno.ENOENT)
        return found

    def _may(self, found: Found, ctx: RequestContext) -> bool:
        # Not default_permissions: the kernel knows one owner, and here the daemon's user is another.
        return found.owner is None or ctx.uid in (found.owner, self._uid, 0)

    def _check(self, found: Found, ctx: RequestContext) -> None:
        if not self._may(found, ctx):
            raise FUSEError(errno.EACCES)

    def _remember(self, inode: InodeT, path: Path_) -> None:
        if inode == pyfuse3.ROOT_INODE:
            return
        known = self._known.setdefault(inode, _Known(path, 0))
        known.lookups += 1

    def _attributes(self, path: Path_, found: Found) -> pyfuse3.EntryAttributes:
        if not isinstance(found.node, Directory):
            return self._file_attributes(path, found.node.size, found)
        attributes = self._common_attributes(path, found)
        attributes.st_mode = ModeT(stat.S_IFDIR | (0o555 if found.owner is None else 0o500))
        attributes.st_nlink = 2
        return attributes

    def _file_attributes(self, path: Path_, size: int, found: Found | None) -> pyfuse3.EntryAttributes:
        attributes = self._common_attributes(path, found)
        attributes.st_mode = ModeT(stat.S_IFREG | (0o444 if found and found.owner is None else 0o400))
        attributes.st_size = size
        attributes.st_blocks = -(-size // _BLOCK)
        return attributes

    def _common_attributes(self, path: Path_, found: Found | None) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = _inode(path)
        attributes.st_uid = self._uid if found is None or found.owner is None else found.owner
        attributes.st_gid = self._gid
        attributes.st_mtime_ns = attributes.st_ctime_ns = attributes.st_atime_ns = self._started_ns
        # Everything changes without the kernel's knowledge: it must ask each time.
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes


def _inode(path: Path_) -> InodeT:
    """The inode number of `path`: its hash, so that it is stable and needs no memory.

    62 bits: among a million paths two are equal once in 9 million views, and then the second shows
    the first's values until the kernel forgets that.
    """
    if not path:
        return pyfuse3.ROOT_INODE
    digest = hashlib.blake2b("/".join(path).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return InodeT(pyfuse3.ROOT_INODE + 1 + (int.from_bytes(digest) >> 2))
