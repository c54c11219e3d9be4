# SPDX-License-Identifier: GPL-2.0-or-later
"""Striping: which spill path the next chunk goes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["Striped", "next_path"]


class Striped(Protocol):
    """What striping knows of a path."""

    credit: float  #: what the path has saved up; striping's own

    @property
    def share(self) -> float:
        """How much of the traffic it should have, in any unit that all paths have in common."""


Path = TypeVar("Path", bound=Striped)


def next_path(paths: Sequence[Path]) -> Path:
    """The path whose turn it is, of at least one: round robin, weighted by the paths' shares.

    Each turn a path gains its share in credit, and the one that is chosen pays for all. That mixes
    the paths as finely as their shares allow, so that what is read back in the order in which it
    was written keeps all devices busy too. Sending each chunk to the path with the shortest queue
    was rejected: with one chunk under way at a time everything would go to the fastest path, and
    the others would have nothing to give when many are wanted back at once.
    """
    if len(paths) == 1:
        return paths[0]
    whole = 0.0
    for path in paths:
        path.credit += path.share
        whole += path.share
    chosen = max(paths, key=lambda path: path.credit)
    chosen.credit -= whole
    return chosen
