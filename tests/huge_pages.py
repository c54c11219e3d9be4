# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of an arena is mapped in huge pages, by what the kernel says of a process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

__all__ = ["arena_addresses", "arenas_in_huge_pages", "needs_huge_pages"]

_SHARED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")

needs_huge_pages = pytest.mark.skipif(
    not _SHARED.exists() or "[deny]" in _SHARED.read_text(),
    reason="this kernel makes no huge pages of shared memory",
)

_MAPPING = re.compile(r"^([0-9a-f]+)-[0-9a-f]+ .* /memfd:greenboost-arena-.*$", re.MULTILINE)


def arenas_in_huge_pages(smaps: str) -> float:
    """The share of all arenas mapped, by the text of /proc/PID/smaps; there must be one."""
    size = huge = 0
    for mapping in _MAPPING.finditer(smaps):
        size += _kib("Size", smaps, mapping.end())
        huge += _kib("ShmemPmdMapped", smaps, mapping.end())
    return huge / size


def arena_addresses(smaps: str) -> list[int]:
    """Where they begin."""
    return [int(mapping[1], 16) for mapping in _MAPPING.finditer(smaps)]


def _kib(field: str, smaps: str, begin: int) -> int:
    found = re.compile(rf"^{field}: +(\d+) kB$", re.MULTILINE).search(smaps, begin)
    assert found, field
    return int(found[1])
