# SPDX-License-Identifier: GPL-2.0-or-later
"""The shim and arenas: a daemon made here grants, refuses and recalls them at the worst of times."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

import msgpack
import pytest

from tierd.statemap import StateMap
from tierd.wire.packet import Disconnected, close_fds, receive_packet, send_packet

from .pieces import CHUNK_BY_CHUNK
from .tiers import ROOT, Runner

MIB = 1 << 20
CHUNK = 2 * MIB
ARENA = 2 * CHUNK


class Daemon:
    """Grants what is asked for."""

    chunk = CHUNK

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.arenas: dict[int, mmap.mmap] = {}
        self.extents: dict[int, bytes] = {}
        self.granted = 0

    def serve(self) -> None:
        """Until the program ends. Raises TimeoutError when nothing comes of it any more."""
        with suppress(Disconnected):
            while True:
                packet, fds = receive_packet(self.sock)
                close_fds(fds)
                self.answer(msgpack.unpackb(packet))

    def send(self, fds: tuple[int, ...] = (), **fields: int | str) -> None:
        send_packet(self.sock, msgpack.packb(fields), fds)

    def grant(self, request: int) -> None:
        self.granted += 1
        fd = os.memfd_create("arena")
        os.ftruncate(fd, ARENA)
        self.arenas[self.granted] = mmap.mmap(fd, ARENA)
        self.send((fd,), re=request, arena=self.granted)
        os.close(fd)

    def answer(self, request: dict[str, Any]) -> None:
        id, op = request.get("id", 0), request.get("op")
        if op == "hello":
            self.send(re=id, session=1, chunk=self.chunk, arena=2 * self.chunk, ram=64 * MIB, spill=64 * MIB)
        elif op == "arena":
            self.grant(id)
        elif op in ("spill", "fetch"):
            memory, at = self.arenas[request["arena"]], request["slot"] * CHUNK
            if op == "spill":
                self.extents[request["chunk"]] = memory[at : at + CHUNK]
                self.send(re=id)
            else:
                memory[at : at + CHUNK] = self.extents.pop(request["chunk"])
                self.send(re=id, kept=0)
        else:
            self.send(re=id)


class Recalling(Daemon):
    """Recalls arenas 1 and 2 before it grants a third."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.waiting: list[int] = []

    def answer(self, request: dict[str, Any]) -> None:
        if "re" in request:
            assert "error" not in request
            del self.arenas[request["re"]]
            if not self.arenas:
                self.grant(self.waiting.pop())
        elif request["op"] == "arena" and self.granted == 2:
            self.waiting.append(request["id"])
            for arena in self.arenas:
                self.send(id=arena, op="recall", arena=arena)
        else:
            super().answer(request)


class Pressing(Daemon):
    """Recalls three arenas at once, and has them emptied only if several chunks leave at a time.

    Until then there is no other, or all but one might move there. Of the six chunks in the three, two find
    room in the fourth arena and some in VRAM.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.recalled: set[int] = set()
        self.held_back: list[dict[str, Any]] = []
        self.together = False

    def answer(self, request: dict[str, Any]) -> None:
        if "re" in request:
            assert "error" not in request
            self.recalled.remove(request["re"])
            del self.arenas[request["re"]]
        elif request["op"] == "spill" and request["arena"] in self.recalled and not self.together:
            self.held_back.append(request)
            if len(self.held_back) == 2:
                self.together = True
                while self.held_back:
                    super().answer(self.held_back.pop())
        elif request["op"] == "arena" and self.recalled and not self.together:
            self.send(re=request["id"], error="ENOSPC", message="all of it is wanted back")
        else:
            super().answer(request)
            if request["op"] == "arena" and self.granted == 4:
                self.recalled = {1, 2, 3}
                for arena in self.recalled:
                    self.send(id=arena, op="recall", arena=arena)


class Refusing(Daemon):
    """Has no T3, and refuses an arena now and then, though it has another a moment later."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.refused = 0

    def answer(self, request: dict[str, Any]) -> None:
        op = request["op"]
        if op == "spill" or (op == "arena" and self.refused < self.granted):
            self.refused += op == "arena"
            self.send(re=request["id"], error="ENOSPC", message="this test has none")
        else:
            super().answer(request)


class Useless(Daemon):
    """Arena 1 cannot be mapped and arena 3 comes without a file: both must be returned."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.useless: set[int] = set()

    def answer(self, request: dict[str, Any]) -> None:
        if request["op"] == "return":
            self.useless.remove(request["arena"])
            self.send(re=request["id"])
            return
        assert not self.useless or request["op"] != "arena"
        if request["op"] == "arena" and self.granted in (0, 2):
            self.granted += 1
            self.useless.add(self.granted)
            fd = os.open("/dev/null", os.O_RDWR)
            self.send((fd,) if self.granted == 1 else (), re=request["id"], arena=self.granted)
            os.close(fd)
        else:
            super().answer(request)


class Greedy(Daemon):
    """Gives whatever is given back to others at once; `promised` are the program's chunks."""

    chunk = 4 * MIB

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.promised: dict[int, int] = {}
        self.full = False

    def answer(self, request: dict[str, Any]) -> None:
        op = request["op"]
        if op == "alloc" and self.full:
            self.send(re=request["id"], error="ENOMEM", message="others have it")
            return
        if op == "alloc":
            self.promised[request["first"]] = request["chunks"]
        elif op == "free":
            del self.promised[request["first"]]
        elif op == "trim":
            assert request["chunks"] < self.promised[request["first"]]
            self.promised[request["first"]] = request["chunks"]
        self.full = self.full or op in ("free", "trim")
        super().answer(request)


def serve(runner: Runner, kind: type[Daemon], *program: str) -> Daemon:
    """The daemon after the program has ended well."""
    path = runner.folder / "socket"
    environment = runner.served(path, 16 * MIB)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(60)
        command = runner.command("-c", *program)
        with subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            with listener.accept()[0] as sock:
                sock.settimeout(20)
                daemon = kind(sock)
                try:
                    daemon.serve()
                finally:
                    process.kill()
            assert process.stdout is not None
            assert process.stdout.read() == "right\n"
    path.unlink()
    return daemon


@pytest.mark.parametrize("kind", [Recalling, Pressing, Refusing, Useless])
def test_a_program_finds_room(runner: Runner, kind: type[Daemon]) -> None:
    daemon = serve(runner, kind, CHUNK_BY_CHUNK, "16")
    assert daemon.granted > 2
    assert not isinstance(daemon, Pressing) or daemon.together


PROMISED = """
from tests.shim.programs.vmm_ops import MIB, create, release
from tests.shim.programs.random_ops import call
from ctypes import byref, c_void_p
context = c_void_p()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", byref(context), 0)
call("cuCtxSetCurrent", context)
# 16 MiB are 4 chunks, promised two and two; 10 are 3.
first, other = create(6 * MIB), create(10 * MIB)
release(first)
print("right")
"""


def test_what_is_still_promised_is_not_given_back(runner: Runner) -> None:
    daemon = serve(runner, Greedy, PROMISED)
    assert isinstance(daemon, Greedy)
    assert sum(daemon.promised.values()) == 3


class Scarce(Daemon):
    """Has one arena, and not the RAM that it told of."""

    asked = 0
    state = -1

    def serve(self) -> None:
        packet, (state,) = receive_packet(self.sock)
        self.state = os.dup(state)
        close_fds((state,))
        self.answer(msgpack.unpackb(packet))
        super().serve()

    def answer(self, request: dict[str, Any]) -> None:
        if request["op"] == "arena" and self.granted:
            self.asked += 1
            self.send(re=request["id"], error="ENOSPC", message="others have it")
        else:
            super().answer(request)


GUESSES = """
import sys
from ctypes import c_uint64
from tests.shim.softcuda.driver import Driver
cuda = Driver("libcuda.so.1")
objects = [cuda.alloc(4 << 20) for _ in range(6)]  # of two chunks each; VRAM holds 8
five, one = (cuda.register(str(n), lambda _: None, *[8] * n) for n in (5, 1))
for _ in range(int(sys.argv[1])):
    cuda.launch(five, *map(c_uint64, objects[:5]))
    cuda.launch(one, c_uint64(objects[5]))
    cuda("cuCtxSynchronize")
print("right")
"""


def scarce(runner: Runner, times: int) -> tuple[Scarce, Mapping[str, int]]:
    daemon = serve(runner, Scarce, GUESSES, str(times))
    assert isinstance(daemon, Scarce)
    with closing(StateMap(daemon.state)) as state:
        return daemon, state.counters()


def test_guesses_are_cut_once_there_is_no_ram_for_them(runner: Runner) -> None:
    """That is found out before anything has moved, and what a launch names is counted once."""
    (_, few), (daemon, many) = (scarce(runner, times) for times in (2, 12))
    assert daemon.asked <= 12
    assert many["evictions"] - few["evictions"] < 10  # not one a time
    used = ("chunk_hits", "chunk_stalls", "chunks_in_place")
    assert sum(many[name] - few[name] for name in used) == 10 * 12
