# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's verdict: are the embeddings from the tiers those from a device that held everything?

Unlike the program beside it, this knows of tiers: it reads what ``greenboost run --json`` wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minilm.sentences import FIRST, PAIRS, SECOND
from tierd.model import format_size, parse_size

__all__ = ["Outcome", "compare", "main", "summary"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of the program wrote."""

    first: Floats  #: embeddings of batch 1, unit vectors [sentences, hidden]
    second: Floats
    weights_bytes: int
    seconds: float  #: from the start of the program to its second answer

    @classmethod
    def read(cls, path: Path) -> Outcome:
        with np.load(path) as file:
            return cls(file["first"], file["second"], int(file["weights_bytes"]), float(file["seconds"]))


def compare(reference: Outcome, tiered: Outcome) -> tuple[bool, float]:
    """Are all embeddings the same bit for bit, and the largest absolute difference (NaN counts as inf)."""
    pairs = ((reference.first, tiered.first), (reference.second, tiered.second))
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return False, float("inf")
    differences = [float(np.abs(a - b).max()) for a, b in pairs]
    largest = float("inf") if any(map(np.isnan, differences)) else max(differences)
    return largest == 0 and all(a.tobytes() == b.tobytes() for a, b in pairs), largest


def understands(outcome: Outcome) -> bool:
    """Does each sentence of batch 1 lie nearest to the one of batch 2 that means the same?"""
    return bool(np.array_equal((outcome.first @ outcome.second.T).argmax(axis=1), PAIRS))


def summary(
    reference: Outcome, tiered: Outcome, run: Mapping[str, Any], limits: Mapping[str, int]
) -> dict[str, Any]:
    """The demo's JSON object. `run` is what ``greenboost run --json`` wrote, `limits` bytes by tier."""
    total = run["total"]
    counters = total["counters"]
    same, difference = compare(reference, tiered)
    return {
        "verified": same and understands(reference),
        "max_abs_diff": difference if math.isfinite(difference) else None,
        "weights_bytes": tiered.weights_bytes,
        "chunk_bytes": run["chunk_bytes"],
        **{f"{tier}_limit_bytes": limit for tier, limit in limits.items()},
        "resident_bytes": total["resident_bytes"],
        "vram_in_bytes": counters["h2d_bytes"],
        "vram_out_bytes": counters["d2h_bytes"],
        "nvme_written_bytes": total["nvme_written_bytes"],
        "nvme_read_bytes": total["nvme_read_bytes"],
        "chunk_hits": counters["chunk_hits"],
        "chunk_stalls": counters["chunk_stalls"],
        "evictions": counters["evictions"],
        "stall_seconds": round(total["stall_seconds"], 6),
        "seconds": round(tiered.seconds, 6),
        "reference_seconds": round(reference.seconds, 6),
    }


def _print_pairs(outcome: Outcome) -> None:
    similarity = outcome.first @ outcome.second.T
    print("Each sentence of batch 1, and the nearest of batch 2 by cosine similarity:")
    for i, sentence in enumerate(FIRST):
        nearest = int(similarity[i].argmax())
        print(f"   {sentence:<46} {similarity[i, nearest]:.2f}  {SECOND[nearest]}")


def _print_table(figures: Mapping[str, Any]) -> None:
    moved = {
        "vram": ("vram_in_bytes", "vram_out_bytes"),
        "nvme": ("nvme_written_bytes", "nvme_read_bytes"),
    }
    print(f"   {'tier':<6}{'limit':>12}{'at most':>12}{'moved in':>12}{'moved out':>12}")
    for tier, title in (("vram", "VRAM"), ("ram", "RAM"), ("nvme", "NVMe")):
        sizes = [figures[f"{tier}_limit_bytes"], figures["resident_bytes"][tier]]
        sizes += [figures[key] for key in moved.get(tier, ())]
        print(f"   {title:<6}" + "".join(f"{format_size(size):>12}" for size in sizes))
    print(
        f"   chunks found in VRAM {figures['chunk_hits']:,}, waited for {figures['chunk_stalls']:,}, "
        f"evicted {figures['evictions']:,}"
    )
    print(
        f"   {figures['seconds']:.1f} s, {figures['stall_seconds']:.1f} s of it waiting for chunks "
        f"(reference: {figures['reference_seconds']:.1f} s)"
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the verdict in words, or as JSON alone with --json; 1 if not verified."""
    parser = argparse.ArgumentParser(prog="python -m minilm.report", description=main.__doc__)
    parser.add_argument("--reference", type=Path, required=True, metavar="FILE")
    parser.add_argument("--tiered", type=Path, required=True, metavar="FILE")
    parser.add_argument("--run", type=Path, required=True, metavar="FILE", help="from greenboost run --json")
    for tier in ("vram", "ram", "nvme"):
        parser.add_argument(f"--{tier}", type=parse_size, required=True, metavar="SIZE", help="its limit")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    arguments = parser.parse_args(argv)

    reference, tiered = Outcome.read(arguments.reference), Outcome.read(arguments.tiered)
    limits = {tier: getattr(arguments, tier) for tier in ("vram", "ram", "nvme")}
    figures = summary(reference, tiered, json.loads(arguments.run.read_text()), limits)
    if arguments.json:
        print(json.dumps(figures))
    else:
        _print_pairs(tiered)
        print()
        _print_table(figures)
        print()
        if figures["verified"]:
            print("Verified: both batches give the same embeddings as the reference, bit for bit.")
        elif figures["max_abs_diff"] is None:
            print("NOT VERIFIED: not all embeddings are numbers, or some are missing.")
        elif not compare(reference, tiered)[0]:
            print(f"NOT VERIFIED: embeddings differ by up to {figures['max_abs_diff']:g}.")
        else:
            print("NOT VERIFIED: the reference itself is not what the model should say.")
    return 0 if figures["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
