# SPDX-License-Identifier: GPL-2.0-or-later
"""The first block of a spill path: how it is known again, so that nothing else is overwritten."""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass, field

import xxhash

__all__ = ["BLOCK", "State", "Superblock", "SuperblockError"]

BLOCK = 4096
"""Bytes of a superblock, and the largest block size of the devices that spill paths are on."""

_MAGIC = b"GreenBoost spill"
_VERSION = 1
_FIELDS = struct.Struct("<16sIIQQ16sI")  # as they stand in Superblock, after magic and version
_DIGEST = struct.Struct("<Q")


class State(enum.IntEnum):
    """Whether the extents' content means something to anybody."""

    CLOSED = 0  #: closed in order
    OPEN = 1  #: a daemon has it open, or died with it


class SuperblockError(ValueError):
    """A block that begins like a superblock and cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a spill path says about itself. Content is void between daemons: this is swap."""

    chunk: int  #: bytes of an extent when it was last open
    generation: int  #: counts the openings
    state: State
    created: bool  #: by a daemon: it goes when a daemon closes it in order
    id: uuid.UUID = field(default_factory=uuid.uuid4)

    def pack(self) -> bytes:
        """The block, BLOCK bytes."""
        head = _FIELDS.pack(
            _MAGIC, _VERSION, self.state, self.chunk, self.generation, self.id.bytes, self.created
        )
        return (head + _DIGEST.pack(xxhash.xxh3_64_intdigest(head))).ljust(BLOCK, b"\0")

    @classmethod
    def unpack(cls, block: bytes) -> Superblock | None:
        """The superblock that a block holds; None when it is something else.

        Raises SuperblockError when it is one, but damaged or of another version.
        """
        if not block.startswith(_MAGIC):
            return None
        block = block.ljust(BLOCK, b"\0")  # a file may be shorter, and is damaged then
        head = block[: _FIELDS.size]
        _, version, state, chunk, generation, identity, created = _FIELDS.unpack(head)
        if version != _VERSION:
            raise SuperblockError(f"its superblock has version {version}, and this program knows {_VERSION}")
        if _DIGEST.unpack_from(block, _FIELDS.size)[0] != xxhash.xxh3_64_intdigest(head):
            raise SuperblockError("its superblock is damaged")
        return cls(chunk, generation, State(state), bool(created), uuid.UUID(bytes=identity))
