# SPDX-License-Identifier: GPL-2.0-or-later
"""The shape of the view: a Snapshot as a tree of directories and one-value files.

No I/O and no FUSE here. A tree belongs to one moment and is built only as far as it is looked at:
a daemon with thousands of allocations must not format them all because somebody reads one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from .model import (
    AllocationSnapshot,
    PressureSnapshot,
    SessionSnapshot,
    Snapshot,
    SpillPathSnapshot,
    Tier,
    TierSnapshot,
)

__all__ = ["MAP_COLUMNS", "ChunkMap", "Directory", "File", "Found", "find", "tree"]

MAP_COLUMNS = 64
"""Chunks in one line of a ``map`` file."""

ChunkMap = Callable[[int, AllocationSnapshot], str]
"""(session id, allocation) -> one ChunkState letter a chunk, as of the call."""

_TIER_NAMES = {Tier.T1: "vram", Tier.T2: "ram", Tier.T3: "nvme"}
# A NUL (ChunkState.FREE) makes grep and editors call the whole file binary.
_PRINTABLE = str.maketrans({"\0": "-"})


@dataclass(frozen=True, slots=True)
class File:
    """A file: `size` in bytes, known without reading, and its content when somebody opens it."""

    size: int
    read: Callable[[], bytes]


class Directory:
    """A directory: children are made at the first look and kept as long as the tree.

    `owner` is the uid to whom it is open besides root and the daemon's user; None: to everybody,
    or as its parent says.
    """

    def __init__(
        self, make: Callable[[], Mapping[str, File | Directory]], *, owner: int | None = None
    ) -> None:
        self._make = make
        self.owner = owner

    @cached_property
    def children(self) -> Mapping[str, File | Directory]:
        return self._make()


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path, and the owner it inherits from the directories above."""

    node: File | Directory
    owner: int | None


def find(root: Directory, path: tuple[str, ...]) -> Found | None:
    """What is at `path` (names from the root), or None."""
    node: File | Directory = root
    owner = root.owner
    for name in path:
        if not isinstance(node, Directory):
            return None
        child = node.children.get(name)
        if child is None:
            return None
        node = child
        if isinstance(node, Directory) and node.owner is not None:
            owner = node.owner
    return Found(node, owner)


def tree(snapshot: Snapshot, chunk_map: ChunkMap) -> Directory:
    """The root directory of `snapshot`; `chunk_map` is called when a ``map`` file is opened."""
    return Directory(
        lambda: {
            "version": _value(snapshot.version),
            "pid": _value(snapshot.pid),
            "socket": _value(snapshot.socket),
            "chunk_bytes": _value(snapshot.chunk_bytes),
            "chunk_source": _value(snapshot.chunk_source),
            "paging": _value(snapshot.paging),
            "arena_bytes": _value(snapshot.arena_bytes),
            "arenas": _value(snapshot.arenas),
            "arenas_ahead": _value(snapshot.arenas_ahead),
            "arena_source": _value(snapshot.arena_source),
            "pressure": Directory(lambda: _pressure(snapshot.pressure)),
            "tiers": Directory(lambda: {_TIER_NAMES[t.tier]: _tier(t) for t in snapshot.tiers}),
            "spill": Directory(lambda: {str(n): _spill(p) for n, p in enumerate(snapshot.spill_paths)}),
            "sessions": Directory(lambda: {str(s.id): _session(s, chunk_map) for s in snapshot.sessions}),
        }
    )


def _value(value: str | int) -> File:
    # Names come from applications and paths from the file system: keep one value one line.
    text = str(value).replace("\n", "\\n")
    content = text.encode("utf-8", "surrogateescape") + b"\n"
    return File(len(content), lambda: content)


def _pressure(pressure: PressureSnapshot) -> Mapping[str, File]:
    return {
        "source": _value(pressure.source),
        "level": _value(pressure.level.name.lower()),
        "wanted_bytes": _value(pressure.wanted),
        "available_bytes": _value(pressure.available),
        "events": _value(pressure.events),
        "returned_bytes": _value(pressure.returned),
        "withheld_bytes": _value(pressure.withheld),
    }


def _tier(tier: TierSnapshot) -> Directory:
    return Directory(lambda: {"total_bytes": _value(tier.total), "used_bytes": _value(tier.used)})


def _spill(path: SpillPathSnapshot) -> Directory:
    return Directory(
        lambda: {
            "path": _value(path.path),
            "total_bytes": _value(path.total),
            "used_bytes": _value(path.used),
            "written_bytes": _value(path.written),
            "read_bytes": _value(path.read),
            "reading_ns": _value(path.reading),
            "state": _value(path.state),
            "errors": _value(path.errors),
            "retired_bytes": _value(path.retired),
            "written_today_bytes": _value(path.written_today),
        }
    )


def _session(session: SessionSnapshot, chunk_map: ChunkMap) -> Directory:
    def children() -> Mapping[str, File | Directory]:
        return {
            "pid": _value(session.pid),
            "uid": _value(session.uid),
            "name": _value(session.name),
            "vram_slots": _value(session.vram_slots),
            "paging": _value(session.decided.paging),
            "vram_bytes": _value(session.vram_bytes),
            "vram_source": _value(session.decided.vram_source),
            "committed_chunks": _value(session.committed_chunks),
            **{f"t{tier.value}_bytes": _value(session.resident.get(tier, 0)) for tier in Tier},
            "nvme_written_bytes": _value(session.written),
            "nvme_read_bytes": _value(session.read),
            "counters": Directory(lambda: {name: _value(n) for name, n in session.counters.items()}),
            "allocations": Directory(
                lambda: {
                    f"{a.address:#x}": _allocation(session.id, a, chunk_map) for a in session.allocations
                }
            ),
        }

    return Directory(children, owner=session.uid)


def _allocation(session: int, allocation: AllocationSnapshot, chunk_map: ChunkMap) -> Directory:
    lines = -(-allocation.chunks // MAP_COLUMNS)
    return Directory(
        lambda: {
            "bytes": _value(allocation.bytes),
            "chunks": _value(allocation.chunks),
            "map": File(allocation.chunks + lines, lambda: _map_lines(chunk_map(session, allocation))),
        }
    )


def _map_lines(letters: str) -> bytes:
    text = letters.translate(_PRINTABLE)
    lines = (text[at : at + MAP_COLUMNS] for at in range(0, len(text), MAP_COLUMNS))
    return "".join(f"{line}\n" for line in lines).encode("ascii", "replace")
