# SPDX-License-Identifier: GPL-2.0-or-later
"""What `greenboost bench gpu` wants to know first: the GPU, the packages, how fast copies are.

    machine.py

Knows nothing of GreenBoost; run by the same Python as llama.py. Prints one JSON object: `error`, with
what to do about it, or `gpu`, `packages` (null: not there) and `copies`, bytes a second for each size
of a copy between pinned RAM and VRAM.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
from typing import Any

SIZES = [n << 20 for n in (64, 256, 1024)]
MOVED = 4 << 30
"""Bytes that are moved for one figure."""
PACKAGES = ("torch", "transformers", "accelerate", "flextensor")


def version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def rates(size: int) -> dict[str, float]:
    """Bytes a second of copies up, down, and each way when both run at once: medians."""
    import torch

    host = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    device = [torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]

    def copy(way: int) -> None:
        to, of = (device, host) if way == 0 else (host, device)
        with torch.cuda.stream(streams[way]):
            to[way].copy_(of[way], non_blocking=True)

    def timed(ways: tuple[int, ...]) -> float:
        first, second = ([torch.cuda.Event(enable_timing=True) for _ in streams] for _ in range(2))
        for way in ways:
            first[way].record(streams[way])
        for way in ways:
            copy(way)
            second[way].record(streams[way])
        torch.cuda.synchronize()
        return float(max(first[way].elapsed_time(second[way]) for way in ways) / 1e3)

    def rate(*ways: int) -> float:
        took = [timed(ways) for _ in range(max(MOVED // size // len(ways), 3) + 1)]
        return size / statistics.median(took[1:])

    return {
        "size_bytes": size,
        "h2d_bytes_per_second": rate(0),
        "d2h_bytes_per_second": rate(1),
        "both_bytes_per_second": rate(0, 1),
    }


def look() -> dict[str, Any]:
    packages = {name: version(name) for name in PACKAGES}
    if packages["torch"] is None:
        return {"error": f"{sys.executable} has no PyTorch; name a Python that has it with --python"}
    if packages["transformers"] is None:
        return {"error": f"no transformers; install it: '{sys.executable} -m pip install transformers'"}
    import torch

    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return {
            "error": f"PyTorch {torch.__version__} (built {built}) finds no NVIDIA GPU; "
            "'greenboost doctor' says what of the driver is missing"
        }
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    copies = []
    for size in SIZES:
        if size * 4 < free:
            copies.append(rates(size))
    return {
        "gpu": {
            "name": properties.name,
            "uuid": str(getattr(properties, "uuid", "")),
            "total_bytes": total,
            "free_bytes": free,
        },
        "python": sys.version.split()[0],
        "cuda": torch.version.cuda,
        "packages": packages,
        "copies": copies,
    }


if __name__ == "__main__":
    says = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(look()), file=says, flush=True)
