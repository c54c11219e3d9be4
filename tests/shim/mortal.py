# SPDX-License-Identifier: GPL-2.0-or-later
"""Daemons that die at a given step, each forked from a process that has loaded what they are made of.

Run as a program, this is that process: its standard input is a socket by which it is asked for them.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from tierd import config, daemon
from tierd.ledger import Ledger
from tierd.model import SpillOptions
from tierd.wire import connection

__all__ = ["Daemon", "Nursery"]


class Daemon:
    """One of them; `ready()` once it serves."""

    def __init__(self, pid: int, said: int, wait: Callable[[], int]) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._said = os.fdopen(said)
        self._wait = wait

    def ready(self) -> bool:
        """Whether it serves; waits until it does or is dead."""
        return self._said.readline() == "ready\n"

    def ended(self) -> bool:
        """Whether it has died."""
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def end(self, number: signal.Signals) -> int:
        """Send the signal and wait; how it ended, as Popen.returncode."""
        signal.pidfd_send_signal(self.pidfd, number)
        status = self._wait()
        os.close(self.pidfd)
        self._said.close()
        return status


class Nursery:
    """The process that they are forked from."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-P", __file__], stdin=theirs.fileno())

    def fork(self, *what: object) -> Daemon:
        """A daemon; `what`: see live()."""
        said, says = os.pipe()
        socket.send_fds(self._socket, [json.dumps(what).encode()], [says])
        os.close(says)
        pid = int(self._socket.recv(64))
        return Daemon(pid, said, partial(self._wait, pid))

    def _wait(self, pid: int) -> int:
        self._socket.send(json.dumps(pid).encode())
        return int(self._socket.recv(64))

    def close(self) -> None:
        """End it; its daemons have been ended."""
        self._socket.close()
        self._process.wait()


def live(folder: str, spill: int, encrypt: bool, life: int) -> None:
    """Serve, with `spill` MiB of T3, and die after `life` steps; 0: never.

    A step is before and after each packet that is sent and each thing that is written down: what anybody
    could notice of it happens there.
    """

    def age() -> None:
        nonlocal life
        life -= 1
        if not life:
            os.kill(os.getpid(), signal.SIGKILL)

    def mortal(real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **keywords: object) -> object:
            age()
            result = real(*arguments, **keywords)
            age()
            return result

        return step

    steps: tuple[tuple[object, str], ...] = (
        (connection, "send_packet"),
        (Ledger, "_change"),
        (Ledger, "_change_many"),
        (Ledger, "take_over"),
    )
    for owner, name in steps:
        setattr(owner, name, mortal(getattr(owner, name)))
    flags = {
        "socket": f"{folder}/socket",
        "chunk": "2MiB",
        "ram": "12MiB",
        "arena": "4MiB",
        "arena_source": "memfd",
        "reserve": "0",
        "spill": [f"{folder}/spill:{spill}MiB"],
    }
    conf = config.load(Path(os.devnull), {}, flags)
    options = SpillOptions(encrypt=encrypt)
    conf = replace(conf, spill=tuple(replace(spec, options=options) for spec in conf.spill))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.serve, conf)
            print("ready", flush=True)

    logging.basicConfig(level=logging.INFO)
    trio.run(main)


def main() -> None:
    """Fork daemons and wait for them, as is asked for."""
    with socket.socket(fileno=os.dup(0)) as asked:
        while True:
            packet, says, _, _ = socket.recv_fds(asked, 4096, 1)
            if not packet:
                return
            what = json.loads(packet)
            if not says:
                _, status = os.waitpid(what, 0)
                asked.send(str(os.waitstatus_to_exitcode(status)).encode())
            elif pid := os.fork():
                os.close(says[0])
                asked.send(str(pid).encode())
            else:
                break
    os.dup2(says[0], 1)
    os.close(says[0])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    live(*what)


if __name__ == "__main__":
    main()
