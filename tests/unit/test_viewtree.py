# SPDX-License-Identifier: GPL-2.0-or-later
"""The shape of the view."""

from __future__ import annotations

import pytest

from tests.unit.view_harness import ADDRESS, LETTERS, NOBODY, session, snapshot
from tierd.model import AllocationSnapshot
from tierd.viewtree import Directory, File, find, tree


def test_tree_has_one_value_a_file() -> None:
    root = tree(snapshot(session()), lambda number, a: a.map)
    read = {}

    def walk(directory: Directory, prefix: str) -> None:
        for name, node in directory.children.items():
            if isinstance(node, File):
                read[prefix + name] = node.read()
                assert len(read[prefix + name]) == node.size
            else:
                walk(node, f"{prefix}{name}/")

    walk(root, "")
    assert read["tiers/vram/total_bytes"] == b"10\n"
    assert read["tiers/ram/used_bytes"] == b"2\n"
    assert read["pressure/level"] == b"calm\n"
    assert read["pressure/returned_bytes"] == b"0\n"
    assert read["spill/0/path"] == b"/spill/a\n"
    assert read["sessions/3/name"] == b"py\\nthon\n"
    assert read["sessions/3/t3_bytes"] == b"0\n"
    assert read["sessions/3/counters/hits"] == b"1\n"
    assert read["sessions/3/allocations/0x7f0000000000/map"] == (
        b"1" * 64 + b"\n" + b"23.^v-" + b"3" * 58 + b"\n" + b"33\n"
    )
    assert all(content.endswith(b"\n") for content in read.values())


def test_tree_asks_for_a_map_only_when_it_is_read() -> None:
    asked = []

    def chunk_map(number: int, a: AllocationSnapshot) -> str:
        asked.append((number, a.address))
        return LETTERS

    found = find(tree(snapshot(session()), chunk_map), ("sessions", "3", "allocations", hex(ADDRESS), "map"))
    assert found is not None
    assert isinstance(found.node, File)
    assert found.owner == NOBODY
    assert not asked
    assert len(found.node.read()) == found.node.size
    assert asked == [(3, ADDRESS)]


@pytest.mark.parametrize("path", [("nothing",), ("version", "below"), ("sessions", "9"), ("sessions", "03")])
def test_tree_does_not_find(path: tuple[str, ...]) -> None:
    assert find(tree(snapshot(session()), lambda number, a: a.map), path) is None
