# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's verdict: only the same bits are verified, and only those of a model that understands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minilm import report
from minilm.report import Outcome
from minilm.sentences import FIRST, PAIRS

LIMITS = {"vram": 56 << 20, "ram": 16 << 20, "nvme": 192 << 20}
RUN: dict[str, Any] = {
    "chunk_bytes": 2 << 20,
    "total": {
        "resident_bytes": {"vram": 56 << 20, "ram": 16 << 20, "nvme": 20 << 20},
        "nvme_written_bytes": 70 << 20,
        "nvme_read_bytes": 60 << 20,
        "stall_seconds": 0.5,
        "counters": {
            "h2d_bytes": 90 << 20,
            "d2h_bytes": 80 << 20,
            "chunk_hits": 400,
            "chunk_stalls": 30,
            "evictions": 99,
        },
    },
}


@pytest.fixture
def good() -> Outcome:
    """Embeddings in which each sentence of batch 1 is nearest to its pair."""
    first = np.eye(len(FIRST), dtype=np.float32)
    second = np.empty_like(first)
    second[list(PAIRS)] = first
    return Outcome(first, second, weights_bytes=90_868_376, seconds=1.5)


def changed(outcome: Outcome, value: float) -> Outcome:
    second = outcome.second.copy()
    second[3, 3] = value
    return replace(outcome, second=second)


def test_equal_bits_are_verified(good: Outcome) -> None:
    figures = report.summary(good, good, RUN, LIMITS)
    assert figures["verified"] is True
    assert figures["max_abs_diff"] == 0
    assert figures["weights_bytes"] == 90_868_376
    assert figures["vram_limit_bytes"] == 56 << 20
    assert figures["resident_bytes"] == RUN["total"]["resident_bytes"]
    assert figures["nvme_written_bytes"] == 70 << 20
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "difference"), [(1e-45, 1e-45), (-0.0, 0.0), (float("nan"), float("inf")), (7.0, 7.0)]
)
def test_a_single_other_value_is_not_verified(good: Outcome, value: float, difference: float) -> None:
    assert good.second[3, 3] == 0
    same, largest = report.compare(good, changed(good, value))
    assert not same
    assert largest == pytest.approx(difference, rel=0.5)


def test_nan_on_both_sides_is_not_hidden(good: Outcome) -> None:
    bad = changed(good, float("nan"))
    assert report.compare(bad, bad) == (False, float("inf"))


def test_what_json_cannot_say_becomes_null(good: Outcome) -> None:
    figures = report.summary(good, changed(good, float("nan")), RUN, LIMITS)
    assert figures["verified"] is False
    assert figures["max_abs_diff"] is None
    json.dumps(figures, allow_nan=False)


def test_another_number_of_sentences_is_not_verified(good: Outcome) -> None:
    assert report.compare(good, replace(good, first=good.first[:-1])) == (False, float("inf"))


def test_a_model_that_does_not_understand_is_not_verified(good: Outcome) -> None:
    nonsense = replace(good, second=np.roll(good.second, 1, axis=0))
    assert report.summary(nonsense, nonsense, RUN, LIMITS)["verified"] is False


@pytest.mark.parametrize(("value", "status"), [(0.0, 0), (0.25, 1)])
def test_exit_status_and_words(
    good: Outcome, value: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, outcome in (("reference", good), ("tiered", changed(good, value))):
        np.savez(
            tmp_path / name, first=outcome.first, second=outcome.second, weights_bytes=90_868_376, seconds=1.5
        )
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    arguments = ["--vram=56MiB", "--ram=16MiB", "--nvme=192MiB", f"--run={tmp_path}/run.json"]
    arguments += [f"--reference={tmp_path}/reference.npz", f"--tiered={tmp_path}/tiered.npz"]
    assert report.main(arguments) == status
    words = capsys.readouterr().out
    assert ("Verified: " in words) == (status == 0)
    assert ("NOT VERIFIED: embeddings differ by up to 0.25" in words) == (status == 1)
    assert "NVMe" in words
    assert report.main([*arguments, "--json"]) == status
    assert json.loads(capsys.readouterr().out)["verified"] is (status == 0)
