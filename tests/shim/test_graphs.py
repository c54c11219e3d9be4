# SPDX-License-Identifier: GPL-2.0-or-later
"""Graphs over more memory than VRAM: what their kernels name is held when they are launched."""

from __future__ import annotations

import json

import pytest

from .pieces import SMALL
from .tiers import Runner


def right(runner: Runner, case: str, **environment: str) -> str:
    """What the program said on stderr, that ended well and printed "right"."""
    result = runner.tiered(SMALL, "-m", "tests.shim.programs.graphs", case, timeout=120, **environment)
    assert (result.status, result.out) == (0, "right\n"), result.err
    return "\n".join(line for line in result.err.splitlines() if line.startswith("greenboost: "))


BY_NODES = "its nodes are launched one by one"


@pytest.mark.parametrize("late", ["0", "1"])
def test_graphs_that_fit_one_by_one_are_launched(runner: Runner, late: str) -> None:
    assert BY_NODES not in right(runner, "graph-per-layer", SOFTCUDA_LATE=late)


@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("case", ["whole-model", "captured-model"])
def test_a_graph_larger_than_vram_runs_node_by_node(runner: Runner, case: str, late: str) -> None:
    assert right(runner, case, SOFTCUDA_LATE=late).count(BY_NODES) == 1


@pytest.mark.parametrize("case", ["that-fit", "one-by-one"])
def test_changes_of_an_executable_graph_are_followed(runner: Runner, case: str) -> None:
    said = right(runner, f"updates-{case}", SOFTCUDA_LATE="1")
    assert (BY_NODES in said) == (case == "one-by-one")


def test_nodes_are_updated_from_those_made_in_their_place(runner: Runner) -> None:
    right(runner, "updates-out-of-order")


def test_what_a_graph_overwrites_is_there_until_it_is_launched(runner: Runner) -> None:
    right(runner, "overwrites")


def test_launch_attributes_are_kept(runner: Runner) -> None:
    assert BY_NODES in right(runner, "attributes")


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("conditional", "and it has a conditional node; give it more VRAM"),
        ("too-large", "and it has a kernel that does so alone; give it more VRAM"),
        ("waits-and-reads", "and it has a wait for a value and a copy from memory that is not pinned"),
        ("device-launch", "that the device itself may launch or change must stay in VRAM"),
    ],
)
def test_what_cannot_run_is_refused_and_said(runner: Runner, case: str, why: str) -> None:
    assert why in right(runner, case)


@pytest.mark.parametrize("late", ["0", "1"])
def test_a_node_alone_that_is_larger_than_vram_runs(runner: Runner, late: str) -> None:
    said = right(runner, "exceeds", SOFTCUDA_LATE=late)
    assert said.count(BY_NODES) == said.count("the others are used in RAM") == 1


@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize("case", ["threads", "while-capturing"])
def test_graphs_and_paging_side_by_side(runner: Runner, case: str, late: str) -> None:
    right(runner, case, SOFTCUDA_LATE=late)


def test_nothing_is_left_of_graphs_that_ended(runner: Runner) -> None:
    right(runner, "many")


def test_a_launch_of_a_graph_is_recorded(runner: Runner) -> None:
    path = runner.folder / "record"
    right(runner, "graph-per-layer", GREENBOOST_RECORD=str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    graphs = {line["f"] for line in lines if line.get("name") == "graph"}
    launches = [line for line in lines if line.get("f") in graphs and line["op"] == "launch"]
    assert len(graphs) == 12
    assert [len(line["o"]) for line in launches] == 48 * [2]
    assert not any(line.get("captured") for line in launches)
