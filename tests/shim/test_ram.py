# SPDX-License-Identifier: GPL-2.0-or-later
"""T2 in a program: how its arenas are mapped there."""

from __future__ import annotations

from tests.huge_pages import arena_addresses, arenas_in_huge_pages, needs_huge_pages
from tierd.arena import HUGE_PAGE

from .pieces import CHUNK_BY_CHUNK
from .tiers import Runner


@needs_huge_pages
def test_huge_pages_are_mapped_as_such(runner: Runner) -> None:
    """Which a GPU registers several times as fast as the same memory in small pages."""
    program = CHUNK_BY_CHUNK + "print(open('/proc/self/smaps').read())\n"
    done = runner.tiered("--chunk 2MiB --vram 16MiB --ram 64MiB", "-c", program, "24")
    assert (done.status, done.err) == (0, done.err)
    assert done.out.startswith("right\n")
    assert not any(address % HUGE_PAGE for address in arena_addresses(done.out))
    assert arenas_in_huge_pages(done.out) > 0.5
