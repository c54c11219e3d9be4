# SPDX-License-Identifier: GPL-2.0-or-later
"""A session with a daemon as a shim has it, for benchmarks: requests in, completions out.

One thread and a blocking socket, so that between a completion and the next request there is as
little as can be: what is measured is the daemon.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ..wire import (
    MAX_UNDER_WAY,
    OPS,
    PROTOCOL_VERSION,
    STATE_HEADER_BYTES,
    STATE_MAGIC,
    STATE_VERSION,
    Answer,
    Disconnected,
    Sender,
    WireError,
    codec,
    packet,
)
from .errors import CommandError

__all__ = ["BenchArena", "BenchSession", "Move"]

_ADDRESS = 0x7000_0000_0000
"""Where the allocation is said to be; the daemon only shows it."""
_STAMP = struct.Struct("<Q")


class Move(NamedTuple):
    """One request for the device."""

    op: str  #: spill or fetch
    chunk: int


class BenchArena:
    """An arena as a shim has it: mapped, every byte of it random at first. Owns `fd`."""

    def __init__(self, id: int, fd: int, chunk: int) -> None:
        self.id = id
        self.fd = fd
        size = os.fstat(fd).st_size
        self.slots = size // chunk
        self._map = mmap.mmap(fd, size)
        self.memory = memoryview(self._map)
        # All of it, and not some noise repeated: a device may find what repeats.
        for at in range(0, size, chunk):
            self.memory[at : at + chunk] = os.urandom(chunk)

    def close(self) -> None:
        """Unmap it."""
        self.memory.release()
        self._map.close()
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class _Slot:
    arena: BenchArena
    number: int
    offset: int


class BenchSession:
    """The session, with one allocation of `chunks` chunks and `arenas` arenas. A context manager.

    Raises CommandError wherever the daemon refuses or returns other bytes than it was given.
    """

    def __init__(self, path: Path, *, chunks: int, arenas: int) -> None:
        self.chunks = chunks
        self.arenas: list[BenchArena] = []
        self._ids = itertools.count(1)
        self._stamps = itertools.count(1)
        self._stamp_of: dict[int, int] = {}  # of each chunk that T3 holds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(os.fspath(path))
            self._begin(arenas)
        except BaseException:
            self.close()
            raise
        slots = range(self.arenas[0].slots)
        # One of each arena in turn.
        self._slots = [_Slot(a, n, n * self.chunk) for n in slots for a in self.arenas]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session: the daemon then takes back all that it gave."""
        self._socket.close()
        while self.arenas:
            self.arenas.pop().close()

    def _begin(self, arenas: int) -> None:
        state = _state(self.chunks)
        try:
            fields = {
                "v": PROTOCOL_VERSION,
                "role": Sender.SHIM.value,
                "pid": os.getpid(),
                "name": "bench",
                "key": "",
            }
            welcome = self._call("hello", fields, [state])
        finally:
            os.close(state)
        self.chunk = int(welcome.fields["chunk"])  #: bytes
        self._call("vram", {"slots": 0, "bytes": 0})
        size = self.chunks * self.chunk
        self._call("alloc", {"first": 0, "chunks": self.chunks, "bytes": size, "address": _ADDRESS})
        for _ in range(arenas):
            answer = self._call("arena", {})
            self.arenas.append(BenchArena(int(answer.fields["arena"]), answer.fds[0], self.chunk))

    @property
    def held(self) -> frozenset[int]:
        """The chunks that T3 holds."""
        return frozenset(self._stamp_of)

    def run(self, moves: Iterable[Move], lanes: int) -> list[float]:
        """Carry out `moves` in this order, `lanes` of them under way at a time; how long each took, s."""
        assert lanes <= min(len(self._slots), MAX_UNDER_WAY)
        free = self._slots[:lanes]
        under_way: dict[int, tuple[Move, _Slot, float]] = {}
        took: list[float] = []
        for move in moves:
            if not free:
                free.append(self._finish(under_way, took))
            slot = free.pop()
            if move.op == "spill":
                stamp = self._stamp_of[move.chunk] = next(self._stamps)
                _STAMP.pack_into(slot.arena.memory, slot.offset, stamp)  # no two chunks are the same
            place = {"chunk": move.chunk, "arena": slot.arena.id, "slot": slot.number}
            if move.op == "fetch":
                place["keep"] = 0
            began = time.perf_counter()
            under_way[self._send(move.op, place)] = move, slot, began
        while under_way:
            self._finish(under_way, took)
        return took

    def _finish(self, under_way: dict[int, tuple[Move, _Slot, float]], took: list[float]) -> _Slot:
        """Wait for one answer; the slot that is free now."""
        received = self._receive()
        ended = time.perf_counter()
        re = received.get("re")
        if not isinstance(re, int) or re not in under_way:
            raise CommandError(f"the daemon says {received!r}, which answers nothing")
        move, slot, began = under_way.pop(re)
        took.append(ended - began)
        _checked(received, move.op, ())
        if move.op == "fetch":
            found = _STAMP.unpack_from(slot.arena.memory, slot.offset)[0]
            if found != self._stamp_of.pop(move.chunk):
                raise CommandError(f"chunk {move.chunk} came back with other bytes than were written")
        return slot

    def drop(self, chunks: Iterable[int]) -> None:
        """Have T3 forget these, in this order."""
        for chunk in chunks:
            self._call("drop", {"chunk": chunk})
            del self._stamp_of[chunk]

    def _call(self, name: str, fields: Mapping[str, object], fds: Iterable[int] = ()) -> Answer:
        self._send(name, fields, fds)
        return _checked(self._receive(), name, self._fds)

    def _send(self, name: str, fields: Mapping[str, object], fds: Iterable[int] = ()) -> int:
        id = next(self._ids)
        try:
            packet.send_packet(
                self._socket, codec.encode_request(OPS[Sender.SHIM][name], id, fields), tuple(fds)
            )
        except Disconnected as error:
            raise CommandError(f"the private daemon is gone ({error}); see what it said above") from None
        return id

    def _receive(self) -> dict[str, object]:
        try:
            received, self._fds = packet.receive_packet(self._socket)
            return codec.unpack(received)
        except (Disconnected, WireError) as error:
            raise CommandError(f"the private daemon is gone ({error}); see what it said above") from None


def _checked(message: dict[str, object], name: str, fds: tuple[int, ...]) -> Answer:
    try:
        answer = codec.answer_of(message, OPS[Sender.SHIM][name], fds)
    except WireError as error:
        packet.close_fds(fds)
        raise CommandError(f"{name}: the daemon's answer cannot be understood: {error}") from None
    if answer.error is not None:
        raise CommandError(f"{name}: {answer.message} ({answer.error})")
    return answer


def _state(chunks: int) -> int:
    """The session's state memfd, in which this session shows nothing. The caller owns it."""
    fd = os.memfd_create("bench-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, STATE_HEADER_BYTES + chunks)
    os.pwrite(fd, struct.pack("<IIQ", STATE_MAGIC, STATE_VERSION, chunks), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd
