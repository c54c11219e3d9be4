# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/replay: its bounds are bounds, and the predictor comes near them on traces made and recorded."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replay.core import Machine, Pass, replay
from replay.generate import generate
from replay.model import CHANGES, OVERWRITES, READS, Steps, TraceError, read, steps
from replay.program import main, summary

TRACES = Path(__file__).parent / "traces"
MIB = 1 << 20
CHUNK = 16 * MIB
Lines = list[dict[str, Any]]


def trace(*lines: dict[str, Any]) -> Lines:
    return [{"greenboost_trace": 1}, *lines]


def small(uses: list[list[tuple[int, int]]], **more: Any) -> Steps:
    """Steps that use these chunks in these ways."""
    made = Steps(CHUNK, **more)
    for step in uses:
        made.first.append(len(made.chunks))
        made.count.append(len(step))
        made.tag.append(len(made.tag) % 3)
        made.passes.append(0)
        made.compute.append(1e-4)
        made.host.append(0.0)
        made.beside.append(inf)
        made.frees.append(0)
        made.waits.append(0)
        for chunk, use in step:
            made.chunks.append(chunk)
            made.uses.append(use)
            made.chunk_count = max(made.chunk_count, chunk + 1)
    return made


def least_reads(uses: list[list[tuple[int, int]]], slots: int) -> int:
    """By trying all there is: a state is what is in VRAM; worth the fewest chunks brought in."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    exists: set[int] = set()
    for step in uses:
        named = {chunk for chunk, _ in step}
        needed = {chunk for chunk, use in step if use != OVERWRITES and chunk in exists}
        following: dict[frozenset[int], int] = {}
        for state, cost in states.items():
            cost += len(needed - state)
            others = sorted(state - named)
            for kept in range(1 << len(others)):
                after = named | {c for i, c in enumerate(others) if kept >> i & 1}
                if len(after) <= slots:
                    key = frozenset(after)
                    following[key] = min(following.get(key, cost), cost)
        states = following
        exists |= named
    return min(states.values())


def least_writes(uses: list[list[tuple[int, int]]], slots: int) -> int:
    """Likewise, of what is in VRAM and which of it was changed; worth the fewest chunks written."""
    states: dict[frozenset[tuple[int, bool]], int] = {frozenset(): 0}
    for i, step in enumerate(uses):
        needed = {}
        for later in reversed(uses[i:]):
            needed.update({chunk: use != OVERWRITES for chunk, use in later})
        following: dict[frozenset[tuple[int, bool]], int] = {}
        for state, cost in states.items():
            used = dict(state)
            others = sorted(used.keys() - {chunk for chunk, _ in step})
            for chunk, use in step:
                used[chunk] = used.get(chunk, False) or use != READS
            for gone in range(1 << len(others)):
                left = {chunk for n, chunk in enumerate(others) if gone >> n & 1}
                key = frozenset((c, changed) for c, changed in used.items() if c not in left)
                total = cost + sum(used[c] and needed.get(c, False) for c in left)
                if len(key) <= slots:
                    following[key] = min(following.get(key, total), total)
        states = following
    return min(states.values())


def short_uses() -> st.SearchStrategy[list[list[tuple[int, int]]]]:
    use = st.tuples(st.integers(0, 5), st.sampled_from([READS, READS, CHANGES, OVERWRITES]))
    return st.lists(st.lists(use, min_size=1, max_size=3, unique_by=lambda u: u[0]), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(short_uses(), st.integers(3, 5))
def test_bounds_of_reads_and_writes_against_trying_everything(
    uses: list[list[tuple[int, int]]], slots: int
) -> None:
    (result,) = replay(small(uses), Machine(vram=slots * CHUNK, ram=100 * CHUNK))
    assert result.in_bound == least_reads(uses, slots)
    assert result.out_bound <= least_writes(uses, slots)


@settings(max_examples=50, deadline=None)
@given(short_uses(), st.integers(3, 6), st.integers(5, 8))
@example([[(1, 1)], [(0, 1), (3, 2), (4, 1)], [(0, 0), (2, 1)], [(4, 0)], [(2, 0), (3, 0), (4, 0)]], 4, 5)
def test_nothing_is_better_than_its_bound(uses: list[list[tuple[int, int]]], slots: int, ram: int) -> None:
    machine = Machine(vram=slots * CHUNK, ram=ram * CHUNK)
    (result,) = replay(small(uses * 3), machine)
    assert result.moved_in >= result.in_bound
    assert result.moved_out >= result.out_bound
    assert result.fetched >= result.fetched_bound
    assert result.seconds >= result.compute
    assert result.seconds >= result.moved_in * CHUNK / machine.up - 1e-9
    assert result.seconds >= result.least - 1e-9


def test_a_written_chunk_that_does_not_fit_is_written_once_a_pass() -> None:
    """Of 8 chunks, each changed once a pass, 5 fit: 3 a pass must go and come back."""
    passes = [[(chunk, CHANGES)] for chunk in range(8)]
    (result,) = replay(small(passes * 10), Machine(vram=5 * CHUNK, ram=100 * CHUNK))
    assert result.out_bound == result.in_bound
    assert 9 * 3 <= result.in_bound <= 10 * 4


def kind(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (row,) = (row for row in rows if row["pass"] == name)
    return row


def check(row: dict[str, Any], bytes_in: float, seconds: float) -> None:
    """At most these times the bounds. The bytes are those to VRAM."""
    assert row["in_bytes"] <= bytes_in * row["bound_in_bytes"], row
    assert row["seconds"] <= seconds * row["bound_seconds"], row


# What was reached, a little above; the goals are 1.05 and 1.10. What is not met is said.
GENERATED = {
    ("decode", "decode"): (11.5e9, 1.05, 1.05),
    ("prefill", "prefill"): (11.5e9, 1.05, 1.05),
    ("mixed", "decode"): (11.5e9, 1.05, 1.05),
    ("mixed", "prefill"): (11.5e9, 1.05, 1.05),
    ("chat", "decode"): (5e9, 1.05, 1.05),
    ("chat", "prefill"): (5e9, 1.05, 1.05),
    ("moe", "decode"): (11.5e9, 1.05, 1.05),
    ("train", "step"): (14e9, 1.15, 2.8),  # frees wait for the GPU, and activations leave between them
    ("routed", "decode"): (11.5e9, 1.85, 1.9),  # who would know where tokens are routed to
}


@pytest.mark.parametrize(("name", "passes"), GENERATED)
def test_on_traces_made_by_rule(name: str, passes: str) -> None:
    vram, bytes_in, seconds = GENERATED[name, passes]
    rows = summary(steps(generate(name), CHUNK), Machine(vram=int(vram), ram=1 << 40))
    check(kind(rows, passes), bytes_in, seconds)


RECORDED = {
    ("llama", "decode"): (11.5e9, 1.035, 1.04),
    ("llama", "prefill"): (11.5e9, 1.05, 1.05),  # the one after a request's decoding
    ("moe", "decode"): (4e9, 1.05, 1.05),
    ("routed", "decode"): (4e9, 1.15, 1.10),
    ("chat", "decode"): (7e9, 1.05, 1.06),
    ("chat", "prefill"): (7e9, 1.21, 1.12),
}


@pytest.mark.parametrize(("name", "passes"), RECORDED)
def test_on_traces_recorded_on_a_gpu(name: str, passes: str) -> None:
    """Of PyTorch models on an H100, by tools/replay/record_models.py."""
    vram, bytes_in, seconds = RECORDED[name, passes]
    lines = read(TRACES / f"{name}.jsonl.xz")
    rows = summary(steps(lines, CHUNK), Machine(vram=int(vram), ram=1 << 40))
    check(kind(rows, passes), bytes_in, seconds)


def test_a_training_step_that_was_seen_before_moves_little_more_than_it_must() -> None:
    """PyTorch's allocator gives the same addresses from the third step on."""
    lines = read(TRACES / "train.jsonl.xz")
    rows = summary(steps(lines, CHUNK), Machine(vram=9 * 10**9, ram=1 << 40), each=True)
    fourth, fifth = rows[-2:]
    check(fourth, 1.05, 1.15)
    check(fifth, 1.05, 1.10)


def test_from_disk_as_well() -> None:
    lines = read(TRACES / "llama.jsonl.xz")
    machine = Machine(vram=11_500_000_000, ram=8 * 10**9)
    row = kind(summary(steps(lines, CHUNK), machine), "decode")
    assert row["nvme_read_bytes"] <= 1.10 * row["bound_nvme_read_bytes"]
    assert row["seconds"] <= 1.07 * row["bound_seconds"]


def test_a_disk_that_answers_late_is_read_ahead_of_use_though_ram_is_full() -> None:
    lines = read(TRACES / "chat.jsonl.xz")
    machine = Machine(vram=7 * 10**9, ram=6 * 10**9, disk_latency=6e-3)
    row = kind(summary(steps(lines, CHUNK), machine), "decode")
    assert row["nvme_read_bytes"] <= 1.15 * row["bound_nvme_read_bytes"]
    assert row["seconds"] <= 1.15 * row["bound_seconds"]


@pytest.mark.parametrize(
    ("chunk", "seconds"),
    [(8 * MIB, 1.20), (64 * MIB, 1.05)],  # small ones: the pager takes longer for a chunk than the bus
)
def test_in_other_chunks(chunk: int, seconds: float) -> None:
    lines = read(TRACES / "llama.jsonl.xz")
    row = kind(summary(steps(lines, chunk), Machine(vram=11_500_000_000, ram=1 << 40)), "decode")
    check(row, 1.05, seconds)


def test_the_bus_is_used_while_the_program_is_busy() -> None:
    lines = list(read(TRACES / "llama.jsonl.xz"))
    idle = []
    for look_ahead in (True, False):
        machine = Machine(vram=11_500_000_000, ram=1 << 40, look_ahead=look_ahead)
        idle.append(kind(summary(steps(lines, 64 * MIB), machine), "decode")["bus_idle_seconds"])
    assert 0 <= idle[0] < 0.85 * idle[1]


def in_passes(passes: list[list[list[tuple[int, int]]]], slots: int) -> list[Pass]:
    made = small([step for one in passes for step in one])
    made.names = [str(i) for i in range(len(passes))]
    made.passes = array("I", [i for i, one in enumerate(passes) for _ in one])
    return replay(made, Machine(vram=slots * CHUNK, ram=1000 * CHUNK))


def layers(first: int, weights: int, activations: int) -> list[list[tuple[int, int]]]:
    """One behind the other, each with an activation that it changes; these are used in turns."""
    return [
        step
        for i in range(weights)
        for step in ([(first + i, READS)], [(first + weights + i % activations, CHANGES)])
    ]


def test_what_nobody_uses_any_more_leaves_though_it_has_to_be_written() -> None:
    """A prefill's activations, of which decoding uses nothing, once kept 11 of 160 places."""
    decode = [[(chunk, READS)] for chunk in range(64)]
    *_, last = in_passes([layers(0, 64, 16)] * 6 + [decode] * 12, slots=40)
    assert last.moved_in <= 1.2 * (64 - 40)


def test_what_is_used_every_few_passes_is_not_written_each_time() -> None:
    """Two models in turns, two passes each; what is clean can leave instead. 1,671 were written once."""
    one, other = layers(0, 40, 30), layers(100, 40, 30)
    passes = in_passes([one, one, other, other] * 16, slots=80)
    assert sum(p.moved_out for p in passes) <= 600


@pytest.mark.parametrize("name", ["decode", "chat"])
def test_loading_weights_writes_what_does_not_fit_once_and_reads_nothing_back(name: str) -> None:
    (row, *_) = summary(steps(generate(name), CHUNK), Machine(vram=5 * 10**9, ram=1 << 40))
    assert row["pass"] == "start"
    assert row["in_bytes"] == 0
    assert row["out_bytes"] == row["bound_out_bytes"] > 0


def one_launch(*objects: list[Any], **more: Any) -> dict[str, Any]:
    return {"op": "launch", "f": 1, "gpu": 10, "o": list(objects), **more}


def uses_of(lines: Lines) -> list[list[tuple[int, int]]]:
    made = steps(lines, 10)
    ends = zip(made.first, made.count, strict=True)
    return [list(zip(made.chunks[f : f + c], made.uses[f : f + c], strict=True)) for f, c in ends]


def test_objects_are_cut_into_chunks_and_say_how_they_are_used() -> None:
    lines = trace(
        {"op": "alloc", "a": 0, "bytes": 35},
        {"op": "copy", "o": [[0, 0, 25, "w"]]},
        one_launch([0, 5, 12], [0, 30, 35, "r"]),
        {"op": "readonly", "o": [[0, 0, 20]]},
        one_launch([0, 5, 12, "o", 7], [0, 18, 22]),
        {"op": "writable", "o": [[0, 0, 5]]},
        one_launch([0, 0, 10]),
    )
    assert uses_of(lines) == [
        [(0, OVERWRITES), (1, OVERWRITES), (2, CHANGES)],
        [(0, CHANGES), (1, CHANGES), (3, READS)],
        [(0, READS), (1, READS), (2, CHANGES)],
        [(0, CHANGES)],
    ]


def test_what_is_read_and_written_by_one_launch_is_not_overwritten_unseen() -> None:
    lines = trace({"op": "alloc", "a": 0, "bytes": 10}, one_launch([0, 0, 10, "w"], [0, 0, 4, "r"]))
    assert uses_of(lines) == [[(0, CHANGES)]]


def test_small_allocations_take_vram_and_are_no_chunks() -> None:
    made = steps(
        trace(
            {"op": "alloc", "a": 0, "bytes": 9}, {"op": "alloc", "a": 1, "bytes": 9}, one_launch([0, 0, 9])
        ),
        10,
    )
    assert (made.small, made.chunk_count, list(made.count)) == (18, 0, [0])


def test_freed_memory_is_moved_no_more_and_its_indexes_are_used_again() -> None:
    lines = trace()
    for number in range(20):
        lines.append({"op": "alloc", "a": number, "bytes": 2 * CHUNK})
        lines.append(one_launch([number, 0, 2 * CHUNK, "m"]))
        lines.append({"op": "free", "a": number})
    made = steps(lines, CHUNK)
    assert made.chunk_count == 2
    assert [(p.moved_in, p.moved_out) for p in replay(made, Machine(vram=3 * CHUNK, ram=0))] == [(0, 0)]


def test_a_trace_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    whole = "".join(json.dumps(line) + "\n" for line in trace({"op": "alloc", "a": 0, "bytes": 5}))
    file.write_text(whole + '{"op":"laun')
    assert len(list(read(file))) == 2
    file.write_text(whole + '{"op":"laun\n{}\n')
    with pytest.raises(TraceError, match=r"trace\.jsonl:3: "):
        list(read(file))


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([{"op": "alloc"}], "no trace"),
        ([{"greenboost_trace": 2}], "version 2"),
    ],
)
def test_what_is_no_trace_is_refused(lines: Lines, what: str) -> None:
    with pytest.raises(TraceError, match=what):
        steps(lines, CHUNK)


def test_a_step_that_does_not_fit_is_named() -> None:
    made = small([[(0, READS)], [(0, READS), (1, READS), (2, READS)]])
    with pytest.raises(TraceError, match="step 2 names 3 chunks"):
        replay(made, Machine(vram=2 * CHUNK, ram=10 * CHUNK))


def test_the_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["mixed", "--vram", "11.5GB"]) == 0
    assert "decode" in capsys.readouterr().out
    assert main(["mixed", "--vram", "11.5GB", "--json", "--passes"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["passes"][1]["pass"] == "prefill 0"
    assert figures["chunk_bytes"] == CHUNK
    assert main([str(tmp_path / "none.jsonl"), "--vram", "1GB"]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_ram_is_made_while_what_there_is_of_it_is_filled() -> None:
    """Making 64 chunks of it takes 0.27 s and filling them 0.32; only the first are waited for in full."""
    lines = trace(*({"op": "alloc", "a": number, "bytes": CHUNK} for number in range(200)))
    for number in range(200):
        lines.append({"op": "copy", "t": 5000 * number, "gpu": 1.0, "o": [[number, 0, CHUNK, "w"]]})
    (result,) = replay(steps(lines, CHUNK), Machine(vram=40 * CHUNK, ram=1 << 40, pin=4e9))
    assert result.moved_out == 160
    assert 1.0 + 0.27 <= result.seconds <= 1.4


def test_a_pause_of_the_program_hides_no_copy_of_a_loop_that_does_not_fit() -> None:
    """Whatever VRAM holds when it ends, all that it does not hold has to come before the next one."""
    lines = trace(*({"op": "alloc", "a": number, "bytes": CHUNK} for number in range(100)))
    now = 0
    for number in range(20):
        lines.append({"op": "pass", "t": now, "name": f"pass {number}"})
        now += 20_000
        for a in range(100):
            lines.append(one_launch([a, 0, CHUNK, "r"], t=now, gpu=1.0))
            now += 5
    last = replay(steps(lines, CHUNK), Machine(vram=60 * CHUNK, ram=1 << 40))[-1]
    least = 20e-3 + 40 * CHUNK / 54.7e9
    assert least <= last.least <= 1.01 * least
    assert last.seconds <= 1.10 * last.least


def test_time_beside_the_gpu_is_not_taken_for_the_programs_own() -> None:
    """It may have waited there; what went by with nothing to compute was its own."""
    lines = trace(
        {"op": "alloc", "a": 0, "bytes": CHUNK},
        one_launch([0, 0, CHUNK, "r"], t=0, gpu=100.0),
        one_launch([0, 0, CHUNK, "r"], t=60, gpu=50.0),
        one_launch([0, 0, CHUNK, "r"], t=250, gpu=50.0),
    )
    made = steps(lines, CHUNK)
    assert list(made.host) == pytest.approx([0.0, 0.0, 100e-6])
    assert list(made.beside) == pytest.approx([0.0, 60e-6, 90e-6])


def test_the_program_waits_for_what_it_copies_to_the_host() -> None:
    lines = trace(
        {"op": "alloc", "a": 0, "bytes": CHUNK},
        {"op": "copy", "o": [[0, 0, CHUNK, "w"]]},
        {"op": "copy", "o": [[0, 0, 8]]},
        one_launch([0, 0, CHUNK]),
        one_launch([0, 0, CHUNK]),
    )
    assert list(steps(lines, CHUNK).waits) == [0, 0, 1, 0]


def seconds_of(passes: list[Pass]) -> Iterator[float]:
    return (p.seconds for p in passes)


def test_looking_ahead_hides_what_it_can() -> None:
    """Compute and copies take about the same: with both at once a pass takes half as long."""
    lines = trace()
    for number in range(100):
        lines.append({"op": "alloc", "a": number, "bytes": 4 * CHUNK})
        lines.append({"op": "copy", "o": [[number, 0, 4 * CHUNK, "w"]]})
    for number in range(5):
        lines.append({"op": "pass", "name": f"pass {number}"})
        for a in range(100):
            lines.append(one_launch([a, 0, 4 * CHUNK, "r"], gpu=600.0))
    made = steps(lines, CHUNK)
    vram = 200 * CHUNK
    ahead = list(seconds_of(replay(made, Machine(vram=vram, ram=1 << 40))))
    assert ahead[-1] <= 1.15 * max(100 * 600e-6, 200 * CHUNK / 54.7e9)
