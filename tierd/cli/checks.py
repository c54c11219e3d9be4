# SPDX-License-Identifier: GPL-2.0-or-later
"""What one look at the machine found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["MISSING", "OK", "WARNING", "Check"]

OK = "ok"
WARNING = "warning"
MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of doctor."""

    name: str  #: stable, a key of --json
    status: str  #: OK, WARNING or MISSING
    found: str  #: what there is, for people
    advice: str = ""  #: what does not work because of it and what to do; empty when OK
    needed: bool = False  #: nothing runs without it
    details: Mapping[str, object] = field(default_factory=dict)  #: figures for --json: bytes, seconds

    @property
    def blocks(self) -> bool:
        """Whether GreenBoost cannot run here because of it."""
        return self.needed and self.status == MISSING
