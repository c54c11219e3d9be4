# SPDX-License-Identifier: GPL-2.0-or-later
"""Talking to the running daemon."""

from __future__ import annotations

import os
from pathlib import Path

from .. import config, wire
from .errors import CommandError, UsageError

__all__ = ["ask", "daemon_socket", "status_of"]


def daemon_socket(flag: str | None) -> Path:
    """Where the daemon listens: --socket, GREENBOOST_SOCKET, the configuration file, the default.

    Raises UsageError.
    """
    named = flag or os.environ.get("GREENBOOST_SOCKET")
    if named:
        return Path(named)
    try:
        return config.load(None, {}, {}).socket
    except config.ConfigError as error:
        raise UsageError(str(error)) from None


def ask(
    socket: Path, op: str, *, timeout: float | None = wire.PATIENCE, **fields: object
) -> dict[str, object]:
    """The daemon's answer to one request. Raises CommandError, saying what to do."""
    try:
        with wire.connect(socket, timeout=timeout) as client:
            return client.call(op, **fields)
    except wire.NoDaemonError as error:
        raise CommandError(f"{error}; start one with 'greenboost daemon', or name its --socket") from None
    except wire.RemoteError as error:
        raise CommandError(f"{op}: {error}") from None
    except wire.WireError as error:
        raise CommandError(f"{socket}: this daemon speaks another protocol ({error}); restart it") from None


def status_of(socket: Path) -> dict[str, object]:
    """The snapshot of the daemon at `socket`, as metrics.to_dict() makes it. Raises CommandError."""
    snapshot = ask(socket, "status")["snapshot"]
    assert isinstance(snapshot, dict)
    return snapshot
