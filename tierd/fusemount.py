# SPDX-License-Identifier: GPL-2.0-or-later
"""Mount and unmount a FUSE file system through fusermount3, so that it never outlives its process.

libfuse can mount by itself, but then the reason of a failure goes to the process's stderr and is
lost, and the file descriptor stays hidden. Asking fusermount3 directly is the same few system calls
(see fuse_mount_fusermount() in libfuse's lib/mount.c) and gives both.

All functions block and must run in a thread while the daemon serves: any of them may make the kernel
ask the very file system that is being served.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FuseMount", "ViewError", "mount", "unmount"]

_TIMEOUT = 10.0
"""Seconds fusermount3 may take. It makes a handful of system calls; longer means that it hangs."""


class ViewError(Exception):
    """The view cannot be mounted there; the message says where, why and what to do."""


# libfuse's own auto_unmount works for root alone: its fusermount3 looks whether the mount is dead and,
# as another user, may not even look (without allow_other; libfuse 3.14). This keeper needs no look.
_KEEPER = """trap "" HUP INT TERM; read -r _; exec "$0" -u -z -- "$1\""""


@dataclass(slots=True)
class FuseMount:
    """A mount: `fd` is the /dev/fuse descriptor, which its user closes.

    `keeper` waits for the end of its standard input, which this process alone holds open, and then
    unmounts: also when this process is killed.
    """

    mountpoint: Path
    fd: int
    keeper: subprocess.Popen[bytes]


def mount(mountpoint: Path) -> FuseMount:
    """Mount a read-only FUSE file system on the empty directory `mountpoint`.

    What a killed daemon left mounted there is unmounted first. Raises ViewError.
    """
    mountpoint = mountpoint.absolute()
    fusermount = _fusermount()
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise ViewError(f"view {mountpoint}: /dev/fuse cannot be opened; load the fuse module, or do without")
    _check_directory(mountpoint)
    options = ["ro", "nosuid", "nodev", "noexec", "noatime", "fsname=greenboost", "subtype=greenboost"]
    if _others_allowed():
        options.append("allow_other")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                [fusermount, "-o", ",".join(options), "--", os.fspath(mountpoint)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ViewError(f"view {mountpoint}: fusermount3 does not answer; look at 'mount'") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise ViewError(f"view {mountpoint}: {said or f'fusermount3 failed ({done.returncode})'}")
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(fd, False)
    keeper = subprocess.Popen(
        ["sh", "-c", _KEEPER, fusermount, os.fspath(mountpoint)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return FuseMount(mountpoint, fd, keeper)


def unmount(mounted: FuseMount) -> None:
    """Unmount, lazily if somebody is still in there, and end the keeper. Not an error if gone."""
    _detach(mounted.mountpoint)
    # Before its input ends: what somebody mounts there next is not its affair.
    mounted.keeper.kill()
    mounted.keeper.communicate()


def _check_directory(mountpoint: Path) -> None:
    """Raise ViewError unless `mountpoint` is an empty directory; clear a stale mount away."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise ViewError(
                f"view {mountpoint}: {_reason(error)}; give an empty directory that exists"
            ) from None
        _detach(mountpoint)
    try:
        with os.scandir(mountpoint) as entries:
            if next(entries, None) is not None:
                raise ViewError(f"view {mountpoint}: the directory is not empty; give an empty one")
    except OSError as error:
        raise ViewError(f"view {mountpoint}: {_reason(error)}; give an empty directory") from None


def _detach(mountpoint: Path) -> None:
    # -z: detach from the tree now, whoever is still in it; the kernel forgets it with its last user.
    with contextlib.suppress(ViewError, subprocess.TimeoutExpired):
        subprocess.run(
            [_fusermount(), "-u", "-z", "--", os.fspath(mountpoint)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )


def _fusermount() -> str:
    found = shutil.which("fusermount3") or shutil.which("fusermount3", path="/bin:/usr/bin:/usr/local/bin")
    if found is None:
        raise ViewError("the view needs fusermount3; install the fuse3 package or run without --view")
    return found


def _others_allowed() -> bool:
    """Whether this user may let other users into the mount (who sees what is then checked per file)."""
    if os.geteuid() == 0:
        return True
    try:
        lines = Path("/etc/fuse.conf").read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
