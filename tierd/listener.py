# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's socket file: made so that only one daemon has it, and removed by nobody else."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .startup import StartupError

__all__ = ["SocketError", "listening"]

_BACKLOG = 64
_MODE = 0o660
"""The group may ask for status and run applications; what changes the daemon needs its user or root."""


class SocketError(StartupError):
    """The socket cannot be had; the text says why."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`; at the end it is closed and the file removed.

    A file that a dead daemon left is replaced. Raises SocketError when a daemon is alive there.
    """
    made = _make_directory(path.parent)
    try:
        sock = _bind(path)
        mine = os.stat(path)
        try:
            yield sock
        finally:
            # Somebody may have removed it and started another daemon: that one's file stays.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), mine):
                    os.unlink(path)
            sock.close()
    finally:
        if made:
            with suppress(OSError):  # not empty: somebody else uses it too
                path.parent.rmdir()


def _make_directory(directory: Path) -> bool:
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise SocketError(f"socket directory {directory}: {directory.parent} does not exist") from None
    except OSError as error:
        raise SocketError(f"socket directory {directory} cannot be made: {error.strerror}") from error
    return True


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with _alone_in(path.parent):
            _clear_stale(path)
            # Not chmod afterwards: in between, anybody the directory lets in could connect.
            old = os.umask(0o777 & ~_MODE)
            try:
                sock.bind(os.fspath(path))
            finally:
                os.umask(old)
            sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise SocketError(f"socket {path}: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep other daemons that start from looking, until ours listens.

    Of two that find a dead socket at the same moment, the second would remove the first one's new one.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _clear_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise SocketError(f"socket {path}: a file that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # so busy that its queue is full, but alive
        except FileNotFoundError:
            return
    raise SocketError(
        f"socket {path}: another daemon is listening there; stop that one, or give this one its own socket"
    )
